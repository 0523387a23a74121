"""Gemma Scope transcoders for Gemma 2: one `params.npz` a layer, at `layer_{l}/…/params.npz`.

W_enc (D, F), W_dec (F, D), b_enc (F), b_dec (D), threshold (F); JumpReLU that passes what is above
its threshold and positive. They read the residual stream after the division of the norm before the
MLP, without its weight, and write after the norm that follows the MLP. The archive is not
compressed, so that decoder rows can be read where they lie.
"""

import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models.dictionaries.activation import JumpReLU
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.finite import finite
from replacement_models.formats.storage.limits import Limits, plain
from replacement_models.formats.storage.points import with_gaps
from replacement_models.formats.storage.rows import widened
from replacement_models.formats.storage.tensors import all_rows, loaded
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

WEIGHTS = "params.npz"
TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
LARGEST, RATIO = 1 << 26, 100
"""A compressed array unpacks to the first, in bytes, or to so many times its packed size."""
LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a zip entry: lengths of the name and of the extra field, after which its bytes begin."""


LIMITS = Limits(
    "Gemma Scope",
    (PerLayerTranscoder,),
    (JumpReLU,),
    read=(ReadPoint.NORMED_UNWEIGHTED,),
    write=(WritePoint.POST_NORM,),
)


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return next(folder.glob(f"layer_*/**/{WEIGHTS}"), None) is not None


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a set of transcoders: one `params.npz` under each `layer_{l}`.

    Args:
        folder: holds `layer_0` and so on.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is torn, a layer is missing, or there are several for one layer.
    """
    if dictionary := re.search(r"gemma-scope-[^/]*-(res|att|mlp)\b", str(folder.resolve())):
        raise ModelError(
            f"{folder}: {dictionary[0]} are sparse autoencoders; expected transcoders "
            "(gemma-scope-…-transcoders)"
        )
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob(f"layer_*/**/{WEIGHTS}")):
        name = path.relative_to(folder).parts[0].removeprefix("layer_")
        if name.isdigit():
            found.setdefault(int(name), []).append(path)
    for layer, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(path.parent.relative_to(folder).as_posix() for path in paths[:4])
            raise ModelError(
                f"{folder}: layer {layer} has {len(paths)} transcoders ({names}, …); keep one, or "
                "list one file a layer under `transcoders:` in a config.yaml of circuit-tracer's"
            )
    layers = [(layer, layer_from(path, lazy)) for layer, [path] in found.items()]
    return PerLayerTranscoder(
        with_gaps(layers, folder),
        read=ReadPoint.NORMED_UNWEIGHTED,
        write=WritePoint.POST_NORM,
    )


def layer_from(path: Path, lazy: bool) -> TranscoderLayer:
    """One layer from one `params.npz`.

    Raises:
        ModelError: it is missing or torn, or holds other arrays.
    """
    arrays = _arrays(path)
    if set(arrays) != TENSORS:
        raise ModelError(f"{path}: holds {sorted(arrays)}, expected {sorted(TENSORS)}")
    if arrays["W_dec"].ndim != 2:
        raise ModelError(f"{path}: W_dec has shape {arrays['W_dec'].shape}, expected (F, D)")

    def whole(name: str) -> Tensor:
        return finite(torch.from_numpy(np.array(arrays[name])), path, name)

    return TranscoderLayer(
        W_enc=whole("W_enc").T.contiguous(),
        b_enc=whole("b_enc"),
        decoder=loaded(MappedDecoder(arrays["W_dec"], path), lazy),
        b_dec=whole("b_dec"),
        activation=JumpReLU(whole("threshold").clamp(min=0)),
    )


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write `layer_{l}/params.npz` for each layer into `folder`, which must exist.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    LIMITS.check(transcoder)
    for index, layer in enumerate(transcoder.layers):
        assert isinstance(layer.activation, JumpReLU)
        arrays = {
            "W_enc": layer.W_enc.T,
            "W_dec": all_rows(layer.decoder)[:, 0],
            "b_enc": layer.b_enc,
            "b_dec": layer.b_dec,
            "threshold": layer.activation.threshold,
        }
        (folder / f"layer_{index}").mkdir()
        dense = {key: widened(value).numpy() for key, value in plain(arrays).items()}
        np.savez(folder / f"layer_{index}" / WEIGHTS, **dense)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class MappedDecoder:
    """Decoder rows in a NumPy array that may lie on disk."""

    array: "np.ndarray[tuple[int, int], np.dtype[np.floating]]"
    path: Path
    device: torch.device | None = None
    dtype: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(features, targets, d_model)."""
        features, d_model = self.array.shape
        return features, 1, d_model

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows targets d_model"]:
        """Read the rows of `features`, in that order."""
        found = torch.from_numpy(np.array(self.array[features.cpu().numpy()]))
        finite(found, self.path, "W_dec (of the rows read)")
        return found[:, None].to(self.device, self.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "MappedDecoder":
        """The same rows, delivered on `device` in `dtype`."""
        return MappedDecoder(self.array, self.path, device, dtype)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an archive: mapped where they are not compressed, else read."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the folder is incomplete")
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                Path(entry.filename).stem: _array(path, archive, entry)
                for entry in archive.infolist()
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, struct.error) as error:
        raise ModelError(
            f"{path}: cannot be read as npz ({error}); copy or download it again"
        ) from error


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as stream:
        if entry.compress_type != zipfile.ZIP_STORED:
            if entry.file_size > max(LARGEST, RATIO * entry.compress_size):
                raise ValueError(f"{entry.filename} unpacks to {entry.file_size} bytes")
            return np.lib.format.read_array(stream, allow_pickle=False)
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
        inside = stream.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    begin = entry.header_offset + LOCAL_HEADER.size + name + extra + inside
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.memmap(path, dtype, "r", begin, shape, order)


FORMAT = Format("gemma-scope", recognise, load, save)
