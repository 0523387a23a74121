"""An optional extra for processors with AMX: large float32 products in split bfloat16.

They take half the time of torch's and less (benchmarks/products.py).
Every float32 is written as the sum of two bfloat16; three of the four products of halves are made
by the processor's matrix unit and added up in float32 (`split_product.c`), which keeps a relative
error of 4e-6 where float32 has 4e-7. The kernel is compiled when it is first asked for, with the
machine's C compiler, and kept in the user's cache folder. Without it everything works the same,
through torch.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tracer.errors import TraceError

SOURCE = Path(__file__).with_name("split_product.c")
NEEDED = {"amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512_bf16"}
FLAGS = (
    *("-O3", "-std=gnu11", "-shared", "-fPIC"),
    *("-mavx512f", "-mavx512bw", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
)
WORTH_IT = 20e6
"""Floating-point operations from which the kernel beats torch."""
ALIGNMENT = 64


def missing(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What keeps the kernel from running here; None where it can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return "this is not Linux on x86-64"
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return f"{cpuinfo} cannot be read"
    flags = next((line.split()[2:] for line in lines if line.startswith("flags")), [])
    if lacking := sorted(NEEDED - set(flags)):
        return f"the processor has no {', '.join(lacking)}"
    return None


def kernel() -> "Kernel":
    """The kernel, compiled if it has not been yet.

    Raises:
        TraceError: the processor lacks something, there is no compiler, or it fails.
    """
    if lack := missing():
        raise TraceError(f"split_products: {lack}; leave the option out")
    return Kernel(_library(_compiler()))


class Kernel:
    """Products of float32 matrices in split bfloat16."""

    def __init__(self, library: ctypes.CDLL) -> None:
        if library.split_ready():
            raise TraceError("split_products: the system gives no access to AMX; leave it out")
        size: Any = ctypes.c_long
        address: Any = ctypes.c_void_p
        library.split_room.restype = size
        library.split_room.argtypes = [size] * 3
        library.split_product.restype = None
        matrices = [address, size] * 3
        library.split_product.argtypes = [*matrices, *[size] * 3, ctypes.c_int, address]
        self._library = library

    def fits(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a product is one for this kernel."""
        plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
        rows = x.stride(1) == 1 and weight.stride(1) == 1
        return plain and rows and 2 * len(x) * weight.numel() > WORTH_IT

    def add(
        self,
        x: Float[Tensor, "rows inner"],
        weight: Float[Tensor, "columns inner"],
        base: Float[Tensor, "rows columns"] | None = None,
    ) -> Float[Tensor, "rows columns"]:
        """`x @ weight.T`, added to `base`, in place, where there is one."""
        rows, inner = x.shape
        columns = len(weight)
        out = x.new_empty(rows, columns) if base is None else base
        room = torch.empty(
            self._library.split_room(rows, columns, inner) + ALIGNMENT, dtype=torch.int16
        )
        aligned = -(-room.data_ptr() // ALIGNMENT) * ALIGNMENT
        matrices = [(one.data_ptr(), one.stride(0)) for one in (x, weight, out)]
        sizes = (rows, columns, inner, int(base is not None))
        self._library.split_product(*matrices[0], *matrices[1], *matrices[2], *sizes, aligned)
        return out


def _compiler() -> str:
    wanted = os.environ.get("CC") or "cc"
    found = shutil.which(wanted)
    if found is None:
        raise TraceError(
            f"split_products: no C compiler {wanted!r}; install gcc, set CC or leave the option out"
        )
    return found


@cache
def _library(compiler: str) -> ctypes.CDLL:
    """Compile the kernel, or take it from the cache if the same was compiled before."""
    made_of = SOURCE.read_bytes() + " ".join((compiler, *FLAGS)).encode()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracer"
    path = folder / f"split_product-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = next(iter(done.stderr.splitlines()), "no message")
                raise TraceError(f"split_products: {compiler} cannot compile {SOURCE}: {reason}")
            made.replace(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise TraceError(f"split_products: {path} cannot be loaded, delete it: {error}") from error
