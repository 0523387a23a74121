"""Gemma Scope 2 transcoders for Gemma 3, per-layer and cross-layer, with or without a skip.

Per-layer: a folder a layer with `config.json` (hf_hook_point_in, hf_hook_point_out) and
`params.safetensors`: w_enc (D, F), w_dec (F, D), b_enc (F), b_dec (D), threshold (F).
Cross-layer: one folder with `config.json` and `params_layer_{l}.safetensors`, w_dec (F, L, D) over
all target layers, those before l unused. `affine_skip_connection` (D, D) is applied as
`x @ affine_skip_connection`. JumpReLU that passes what is above its threshold and positive.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement_models.dictionaries.activation import JumpReLU
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.limits import Limits, plain
from replacement_models.formats.storage.members import members
from replacement_models.formats.storage.points import (
    READ,
    WRITE,
    one_of,
    placed,
    read_json,
    refuse,
    with_gaps,
)
from replacement_models.formats.storage.tensors import TensorFile, all_rows
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG, WEIGHTS, FIRST = "config.json", "params.safetensors", "params_layer_0.safetensors"
SKIP = "affine_skip_connection"
TENSORS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold", SKIP)


LIMITS = Limits(
    "Gemma Scope 2",
    (PerLayerTranscoder, CrossLayerTranscoder),
    (JumpReLU,),
    read=(ReadPoint.RESIDUAL, ReadPoint.NORMED),
    skip=True,
)


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return (folder / FIRST).is_file() or bool(members(folder, CONFIG, WEIGHTS))


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a per-layer set or a cross-layer transcoder.

    Args:
        folder: holds `params_layer_0.safetensors`, or a folder a layer.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is missing or torn, or a variant is not supported.
    """
    if (folder / FIRST).is_file():
        return _cross_layer(folder, lazy)
    found, reads, writes, models = [], set(), set(), set()
    for member in members(folder, CONFIG, WEIGHTS):
        config = _config(member / CONFIG, "transcoder")
        (layer, read), (_, write) = _points(config, member / CONFIG)
        reads.add(read)
        writes.add(write)
        models.add(str(config.get("model_name", "")))
        found.append((layer, layer_from(TensorFile.open(member / WEIGHTS), lazy)))
    return PerLayerTranscoder(
        with_gaps(found, folder),
        read=one_of(reads, "hf_hook_point_in", folder),
        write=one_of(writes, "hf_hook_point_out", folder),
        model=models.pop() if len(models) == 1 else "",
    )


def layer_from(file: TensorFile, lazy: bool, layer: int = 0) -> TranscoderLayer:
    """One layer from one file.

    Args:
        file: its weights.
        lazy: leave decoder rows on disk.
        layer: of a cross-layer transcoder, whose first decoders are for layers before it.
    """
    file.only(TENSORS)
    return TranscoderLayer(
        W_enc=file.tensor("w_enc").T.contiguous(),
        b_enc=file.tensor("b_enc"),
        decoder=file.decoder("w_dec", lazy, first_target=layer),
        b_dec=file.tensor("b_dec"),
        activation=JumpReLU(file.tensor("threshold").clamp(min=0)),
        W_skip=file.optional(SKIP),
    )


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a transcoder into `folder`, which must exist.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    LIMITS.check(transcoder)
    cross = isinstance(transcoder, CrossLayerTranscoder)
    for index, layer in enumerate(transcoder.layers):
        place = folder if cross else folder / f"layer_{index}"
        place.mkdir(exist_ok=True)
        (place / CONFIG).write_text(json.dumps(_described(transcoder, index), indent=2) + "\n")
        rows = all_rows(layer.decoder)
        unused = rows.new_zeros(len(rows), index, transcoder.d_model)
        decoder = torch.cat([unused, rows], dim=1) if cross else rows[:, 0]
        save_file(
            plain(_tensors(layer, decoder)),
            place / (f"params_layer_{index}.safetensors" if cross else WEIGHTS),
        )


def _cross_layer(folder: Path, lazy: bool) -> Transcoder:
    config = _config(folder / CONFIG, "clt", "cross_layer_transcoder")
    count = len(list(folder.glob("params_layer_*.safetensors")))
    layers = []
    for index in range(count):
        file = TensorFile.open(folder / f"params_layer_{index}.safetensors")
        if len(file.shape("w_dec")) != 3 or file.shape("w_dec")[1] != count:
            raise ModelError(
                f"{file.path}: w_dec has shape {file.shape('w_dec')}, expected (F, {count}, D), "
                f"since there are {count} files"
            )
        layers.append(layer_from(file, lazy, index))
    (_, read), (_, write) = _points(config, folder / CONFIG)
    return CrossLayerTranscoder(
        layers, read=read, write=write, model=str(config.get("model_name", ""))
    )


def _config(path: Path, *types: str) -> dict[str, Any]:
    config = read_json(path)
    refuse(config, path, architecture=("jump_relu",), type=types)
    return config


def _points(
    config: dict[str, Any], path: Path
) -> tuple[tuple[int, ReadPoint], tuple[int, WritePoint]]:
    """Layer and place read from and written to; of a list of hook points, the first."""
    names = [config.get(f"hf_hook_point_{end}") for end in ("in", "out")]
    source, target = (name[0] if isinstance(name, list) and name else name for name in names)
    return (
        placed(source, READ, "hf_hook_point_in", path),
        placed(target, WRITE, "hf_hook_point_out", path),
    )


def _described(transcoder: Transcoder, index: int) -> dict[str, Any]:
    cross = isinstance(transcoder, CrossLayerTranscoder)
    end = "input" if transcoder.read is ReadPoint.RESIDUAL else "output"
    out = {
        WritePoint.MLP_OUTPUT: "mlp.output",
        WritePoint.POST_NORM: "post_feedforward_layernorm.output",
    }[transcoder.write]
    at = 0 if cross else index
    return {
        "hf_hook_point_in": f"model.layers.{at}.pre_feedforward_layernorm.{end}",
        "hf_hook_point_out": f"model.layers.{at}.{out}",
        "width": transcoder.features if cross else len(transcoder.layers[index].W_enc),
        "model_name": transcoder.model,
        "architecture": "jump_relu",
        "affine_connection": transcoder.skip(index) is not None,
        "type": "clt" if cross else "transcoder",
    }


def _tensors(layer: TranscoderLayer, decoder: Tensor) -> dict[str, Tensor]:
    assert isinstance(layer.activation, JumpReLU)
    found = {
        "w_enc": layer.W_enc.T,
        "b_enc": layer.b_enc,
        "w_dec": decoder,
        "b_dec": layer.b_dec,
        "threshold": layer.activation.threshold,
    }
    return found if layer.W_skip is None else found | {SKIP: layer.W_skip}


FORMAT = Format("gemma-scope-2", recognise, load, save)
