"""tracer's own transcoder format: `transcoder.json` and one `layer_{l}.safetensors` a layer.

`transcoder.json` holds format, version, kind, layers, features, d_model, activation {name, k} (a
list of them where layers differ), read, write, model. `layer_{l}.safetensors` holds W_enc (F, D),
b_enc (F), W_dec (F, targets, D), b_dec (D) and, where they exist, threshold (F) or (1) and W_skip
(D, D), applied as `x @ W_skip`. Any normalisation is folded into the weights.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from replacement_models.dictionaries.activation import (
    Activation,
    BatchTopK,
    JumpReLU,
    ReLU,
    ReLUTopK,
    TopK,
)
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.points import read_json
from replacement_models.formats.storage.tensors import TensorFile, all_rows
from replacement_models.sites import STAGES, ReadPoint, Stage, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG = "transcoder.json"
KINDS: dict[str, type[Transcoder]] = {
    kind.kind: kind for kind in (CrossLayerTranscoder, PerLayerTranscoder, SparseAutoencoder)
}


FIELDS = {
    *("format", "version", "kind", "layers", "features", "d_model"),
    *("activation", "read", "write", "model", "site"),
}
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip")


MOST, DEEPEST = 2**31 - 1, 10_000
"""Features or dimensions, and layers: more is a mistake."""


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return (folder / CONFIG).is_file()


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a transcoder.

    Args:
        folder: holds `transcoder.json`.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is missing or torn, or a field is unknown.
    """
    config = _config(folder / CONFIG)
    activations = config.get("activation")
    if not isinstance(activations, list):
        activations = [activations] * config["layers"]
    layers = []
    for index, activation in enumerate(activations):
        file = TensorFile.open(folder / f"layer_{index}.safetensors")
        file.only(TENSORS)
        layers.append(
            TranscoderLayer(
                W_enc=file.tensor("W_enc"),
                b_enc=file.tensor("b_enc"),
                decoder=file.decoder("W_dec", lazy),
                b_dec=file.tensor("b_dec"),
                activation=_activation(activation, file.optional("threshold"), file.path),
                W_skip=file.optional("W_skip"),
                stage=_stage(config, folder / CONFIG),
            )
        )
    transcoder = KINDS[config["kind"]](
        layers,
        read=ReadPoint(config["read"]),
        write=WritePoint(config["write"]),
        model=config["model"],
    )
    for field, got in (("features", transcoder.features), ("d_model", transcoder.d_model)):
        if config[field] != got:
            raise ModelError(
                f"{folder / CONFIG}: {field} is {config[field]!r}, but the weights have {got}; "
                "the files are not of one transcoder"
            )
    return transcoder


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a transcoder into `folder`, which must exist."""
    for index in range(len(transcoder.layers)):
        save_file(tensors(transcoder, index), folder / f"layer_{index}.safetensors")
    activations = [_described(layer.activation) for layer in transcoder.layers]
    alike = all(activation == activations[0] for activation in activations)
    config = {
        "format": "tracer-transcoder",
        "version": 1,
        "kind": transcoder.kind,
        "layers": len(transcoder.layers),
        "features": transcoder.features,
        "d_model": transcoder.d_model,
        "activation": activations[0] if alike else activations,
        "read": transcoder.read.value,
        "write": transcoder.write.value,
        "model": transcoder.model,
    }
    stage = transcoder.layers[0].stage
    if stage is not None:
        config["site"] = stage.name.lower()
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def tensors(transcoder: Transcoder, index: int) -> dict[str, Tensor]:
    """Named weights of one layer as this format stores them."""
    layer = transcoder.layers[index]
    found = {
        "W_enc": layer.W_enc,
        "b_enc": layer.b_enc,
        "W_dec": all_rows(layer.decoder),
        "b_dec": layer.b_dec,
    }
    if isinstance(layer.activation, JumpReLU | BatchTopK):
        found["threshold"] = layer.activation.threshold
    if layer.W_skip is not None:
        found["W_skip"] = layer.W_skip
    return {key: value.contiguous().cpu() for key, value in found.items()}


def _described(activation: Activation) -> dict[str, Any]:
    k = {"k": activation.k} if isinstance(activation, TopK | ReLUTopK) else {}
    return {"name": activation.name} | k


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    _check_fields(path, config)
    activation = config.get("activation")
    if isinstance(activation, list) and len(activation) != config["layers"]:
        raise ModelError(
            f"{path}: activation lists {len(activation)} layers, expected {config['layers']}"
        )
    return config | {"model": str(config.get("model", ""))}


def _check_fields(path: Path, config: dict[str, Any]) -> None:
    choices: dict[str, list[Any]] = {
        "format": ["tracer-transcoder"],
        "version": [1],
        "kind": sorted(KINDS),
        "read": [point.value for point in ReadPoint],
        "write": [point.value for point in WritePoint],
    }
    for field, values in choices.items():
        if config.get(field) not in values:
            raise ModelError(f"{path}: {field} is {config.get(field)!r}, expected one of {values}")
    for field in ("layers", "features", "d_model"):
        if type(config.get(field)) is not int or not 1 <= config[field] <= MOST:
            raise ModelError(
                f"{path}: {field} is {config.get(field)!r:.80}, expected a count from 1 up"
            )
    if config["layers"] > DEEPEST:
        raise ModelError(f"{path}: layers is {config['layers']}, expected at most {DEEPEST}")
    unknown = sorted(set(config) - FIELDS)
    if unknown:
        raise ModelError(f"{path}: field {unknown[0]!r} is not known, expected {sorted(FIELDS)}")


def _stage(config: dict[str, Any], path: Path) -> Stage | None:
    """What an autoencoder reads; None where it is not said."""
    site = config.get("site")
    if site is None:
        return None
    known = [stage.name.lower() for stage in Stage if stage in range(STAGES)]
    if config["kind"] != SparseAutoencoder.kind or site not in known:
        raise ModelError(
            f"{path}: site is {site!r} of kind {config['kind']}, expected none, or of an sae one "
            f"of {', '.join(known)}"
        )
    return Stage[site.upper()]


def _activation(config: Any, threshold: Tensor | None, path: Path) -> Activation:
    name = config.get("name") if isinstance(config, dict) else config
    if threshold is not None and name in ("relu", "topk", "relu_topk"):
        raise ModelError(f"{path}: has a threshold, but {CONFIG} says activation {name}")
    if name == "relu":
        return ReLU()
    if name in ("topk", "relu_topk") and type(config.get("k")) is int:
        return TopK(config["k"]) if name == "topk" else ReLUTopK(config["k"])
    if name in ("jump_relu", "batch_topk"):
        if threshold is None:
            raise ModelError(f"{path}: activation {name} needs a tensor 'threshold', found none")
        return JumpReLU(threshold) if name == "jump_relu" else BatchTopK(threshold.reshape(-1))
    raise ModelError(
        f"{path.parent / CONFIG}: activation is {config!r}, expected relu, jump_relu, batch_topk, "
        "or topk or relu_topk with a whole number k"
    )


FORMAT = Format("tracer", recognise, load, save)
