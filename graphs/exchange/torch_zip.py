"""Tensors out of a file of `torch.save`, without torch and without running what is in it.

Such a file is a zip of a pickle and of raw storages. A pickle is a program that may call anything;
here it is read, not run: a few opcodes that build plain values are followed, names are kept as
names, and only calls that rebuild a tensor or one of the plain records in `RECORDS` have a result,
made here. Everything else is refused before anything of it takes effect.
"""

import io
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs.schema import GraphError

STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bf16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
RECORDS = {
    "circuit_tracer.attribution.targets.LogitTarget",
    "circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig",
    "transformer_lens.HookedTransformerConfig.HookedTransformerConfig",
    "transformer_lens.config.HookedTransformerConfig.HookedTransformerConfig",
    "transformer_lens.config.hooked_transformer_config.HookedTransformerConfig",
}
"""Classes whose instances are read as the plain values in them."""
WORDS = re.compile(
    r"torch\.(device|float16|float32|float64|bfloat16|int8|int16|int32|int64|uint8|bool)"
)
REBUILD = "torch._utils._rebuild_tensor_v2"
ORDERED, RECONSTRUCT, OBJECT = (
    "collections.OrderedDict",
    "copyreg._reconstructor",
    "builtins.object",
)
LARGEST = 1 << 26
"""Bytes of the pickle: the tensors are not in it."""
DEEPEST = 10_000
"""Values on the stack at once."""


@dataclass(frozen=True, slots=True)
class Name:
    """A module's name of something; never looked up."""

    path: str


@dataclass(slots=True)
class Record:
    """An instance of one of `RECORDS`."""

    kind: str
    values: dict[str, Any] | tuple[Any, ...]


class Mark:
    """What opens a run of values on the stack."""


def read_torch_zip(content: bytes) -> Any:
    """What `torch.save` wrote: dicts, lists, text, numbers, arrays for tensors, `Record`s.

    Raises:
        GraphError: it is no such file, or holds what is not read here.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {one.filename: one for one in archive.infolist()}
            programs = [name for name in members if name.endswith("/data.pkl")]
            if len(programs) != 1:
                raise GraphError("no file of torch.save: expected one data.pkl in a zip")
            root = programs[0].removesuffix("data.pkl")
            if members[programs[0]].file_size > LARGEST:
                raise GraphError(f"its data.pkl has more than {LARGEST} bytes: no graph's has")

            def storage(key: str, size: int) -> bytes:
                member = members.get(f"{root}data/{key}")
                if member is None or member.file_size != size:
                    raise GraphError(f"the storage {key!r:.20} is missing or torn")
                return archive.read(member)

            return _Reader(storage).value(archive.read(programs[0]))
    except GraphError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),
        ValueError,  # of names that are no text, and places before the file's beginning
    ) as error:
        reason = " ".join(str(error).split())
        raise GraphError(f"no file of torch.save that can be read: {reason:.100}") from error


class _Reader:
    """Follows the opcodes of one pickle."""

    def __init__(self, storage: Callable[[str, int], bytes]) -> None:
        self.storage = storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def value(self, program: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    break
                self._follow(opcode.name, argument)
                if len(self.stack) > DEEPEST:
                    raise GraphError("its pickle nests too deep: no graph's does")
            return self.stack.pop()
        except GraphError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as why:
            raise GraphError(f"its pickle is torn: {' '.join(str(why).split())!r:.80}") from why

    def _follow(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in PLAIN:
            self.stack.append(argument)
        elif name in ACTIONS:
            ACTIONS[name](self)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(self._named(name, argument))
        elif name in ("MEMOIZE", *PUTS):
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif name in GETS:
            self.stack.append(self.memo[int(argument)])
        elif name not in ("PROTO", "FRAME"):
            raise GraphError(f"its pickle uses {name}, which is not followed here: only tensors "
                             "and plain values are read")  # fmt: skip

    def _named(self, name: str, argument: Any) -> Name:
        if name == "STACK_GLOBAL":
            attribute, module = self.stack.pop(), self.stack.pop()
        else:
            module, attribute = str(argument).split(" ", 1)
        path = f"{module}.{attribute}".replace("__builtin__.", "builtins.")
        path = path.replace("copy_reg.", "copyreg.")
        storage = path.startswith("torch.") and path.removeprefix("torch.") in STORAGES
        known = {REBUILD, ORDERED, RECONSTRUCT, OBJECT} | RECORDS
        if not (storage or path in known or WORDS.fullmatch(path)):
            raise GraphError(f"its pickle names {path!r:.80}, which a graph has no use for: "
                             "nothing of it was run")  # fmt: skip
        return Name(path)

    def run(self) -> list[Any]:
        """The values since the last mark."""
        at = max(place for place, value in enumerate(self.stack) if isinstance(value, Mark))
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | bool | tuple):
                raise TypeError("a key of no plain kind")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("values for what is no list")
        target += items

    def tuple_of(self, count: int) -> None:
        held = tuple(self.stack[-count:])
        if len(held) < count:
            raise IndexError("too few values")
        del self.stack[-count:]
        self.stack.append(held)

    def call(self) -> None:
        """REDUCE and NEWOBJ: of a tensor, a record, a dict, a device."""
        arguments, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, Name) or not isinstance(arguments, tuple):
            raise TypeError("a call of no name")
        self.stack.append(self._called(what.path, arguments))

    def _called(self, path: str, arguments: tuple[Any, ...]) -> Any:
        if path == REBUILD:
            return _tensor(*arguments[:4])
        if path == ORDERED:
            return {}
        if path == "torch.device":
            return str(arguments[0])
        if path == RECONSTRUCT and isinstance(arguments[0], Name) and arguments[0].path in RECORDS:
            return Record(arguments[0].path, {})
        if path in RECORDS:
            return Record(path, arguments if arguments else {})
        raise GraphError(f"its pickle calls {path!r:.80}: nothing of it was run")

    def build(self) -> None:
        """BUILD: the attributes of a record."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        if isinstance(target, Record) and isinstance(state, dict):
            target.values = state
        elif not isinstance(target, dict):
            raise TypeError("a state for what is no record")

    def persistent(self) -> None:
        """BINPERSID: a storage, read where it is asked for."""
        _, kind, key, _, count = self.stack.pop()
        if not isinstance(kind, Name) or not isinstance(count, int) or count < 0:
            raise TypeError("a storage of no kind")
        code = STORAGES[kind.path.removeprefix("torch.")]
        width = 2 if code == "bf16" else np.dtype(code).itemsize
        self.stack.append(_Storage(self.storage(str(key), width * count), code))


@dataclass(frozen=True, slots=True)
class _Storage:
    content: bytes
    code: str

    def numbers(self) -> np.ndarray:
        if self.code != "bf16":
            return np.frombuffer(self.content, f"<{self.code}" if self.code != "?" else "?")
        whole = np.frombuffer(self.content, "<u2").astype(np.uint32) << 16
        return whole.view(np.float32)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """An array of a storage; refused where it would reach outside."""
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor of no storage")
    numbers = storage.numbers()
    whole = (offset, *shape, *strides)
    if not all(isinstance(one, int) and one >= 0 for one in whole) or len(shape) != len(strides):
        raise ValueError("a tensor of no shape")
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    reach = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if reach >= len(numbers):
        raise ValueError("a tensor that reaches outside its storage")
    steps = tuple(step * numbers.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False).copy()


CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": Mark,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
PLAIN = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "BINFLOAT",
    "LONG1",
}  # fmt: skip
PUTS, GETS = ("BINPUT", "LONG_BINPUT", "PUT"), ("BINGET", "LONG_BINGET", "GET")
ACTIONS: dict[str, Callable[[_Reader], None]] = {
    "TUPLE": lambda it: it.stack.append(tuple(it.run())),
    "TUPLE1": lambda it: it.tuple_of(1),
    "TUPLE2": lambda it: it.tuple_of(2),
    "TUPLE3": lambda it: it.tuple_of(3),
    "LIST": lambda it: it.stack.append(it.run()),
    "SETITEMS": lambda it: it.set_items(it.run()),
    "SETITEM": lambda it: it.set_items([it.stack.pop(-2), it.stack.pop()]),
    "APPENDS": lambda it: it.append(it.run()),
    "APPEND": lambda it: it.append([it.stack.pop()]),
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "BUILD": _Reader.build,
    "BINPERSID": _Reader.persistent,
}
