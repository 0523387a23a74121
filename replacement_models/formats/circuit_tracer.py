"""circuit-tracer's transcoder folders: `config.yaml` beside per-layer or cross-layer safetensors.

Per-layer (`model_kind: transcoder_set`): `layer_{l}.safetensors` with W_enc (F, D), W_dec (F, D),
b_enc, b_dec, optional `activation_function.threshold` and W_skip, applied as `x @ W_skip.T`.
Cross-layer (`cross_layer_transcoder`): `W_enc_{l}.safetensors` with W_enc_l, b_enc_l, b_dec_l,
optional threshold_l, and `W_dec_{l}.safetensors` with W_dec_l (F, L - l, D); a skip, which
circuit-tracer applies as `x @ W_skip[l]` but neither saves nor loads, stands beside them as
`W_skip.safetensors`, key W_skip (L, D, D). TopK's k stands in config.yaml only.
Under `transcoders:` config.yaml may list files of Gemma Scope instead, here or on the hub.
BatchTopK is written as the JumpReLU it is, one threshold for all. Layouts as of circuit-tracer's
commit 4bb8c0e (version 0.5.0).
"""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
import yaml
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
from replacement_models.errors import ModelError
from replacement_models.formats import gemma_scope, gemma_scope_2
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.tensors import TensorFile, all_rows
from replacement_models.hub import HubId, download
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG = "config.yaml"
PER_LAYER, CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"
READ = {
    "hook_resid_mid": ReadPoint.RESIDUAL,
    "ln2.hook_normalized": ReadPoint.NORMED_UNWEIGHTED,
    "mlp.hook_in": ReadPoint.NORMED,
}
WRITE = {"mlp.hook_out": WritePoint.MLP_OUTPUT, "hook_mlp_out": WritePoint.POST_NORM}


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return (folder / CONFIG).is_file()


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a transcoder.

    Args:
        folder: holds `config.yaml`.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is missing or torn, or a field is unknown.
    """
    config = _config(folder / CONFIG)
    points = {
        "read": _point(config, "feature_input_hook", READ, folder),
        "write": _point(config, "feature_output_hook", WRITE, folder),
    }
    model = str(config.get("model_name", ""))
    if config["model_kind"] == CROSS_LAYER:
        return CrossLayerTranscoder(_cross_layers(folder, config, lazy), model=model, **points)
    layers = [_listed_layer(path, config, lazy) for path in _layer_files(folder, config)]
    return PerLayerTranscoder(layers, model=model, **points)


def elsewhere(folder: Path) -> dict[str, Path]:
    """Files of other repositories that `config.yaml` lists, by their addresses.

    Raises:
        ModelError: `config.yaml` cannot be read, or a file cannot be had.
    """
    listed = _config(folder / CONFIG).get("transcoders") or []
    addresses = [str(entry) for entry in listed if str(entry).startswith("hf://")]
    return {address: _listed_file(address, folder) for address in addresses}


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a transcoder into `folder`, which must exist.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    activation = _one_activation(transcoder)
    widths = sorted({len(layer.W_enc) for layer in transcoder.layers})
    if len(widths) > 1:
        raise ModelError(
            "circuit-tracer's format has as many features in every layer, but here are layers of "
            + ", ".join(map(str, widths))
            + " (`tracer convert` widens them)"
        )
    if isinstance(activation, ReLUTopK):
        raise ModelError(
            "circuit-tracer's TopK keeps negative values too: it cannot hold relu_topk"
        )
    config: dict[str, Any] = {
        "model_name": transcoder.model,
        "feature_input_hook": {point: hook for hook, point in READ.items()}[transcoder.read],
        "feature_output_hook": {point: hook for hook, point in WRITE.items()}[transcoder.write],
    }
    if isinstance(transcoder, CrossLayerTranscoder):
        if isinstance(activation, TopK):
            raise ModelError("circuit-tracer's format has TopK for per-layer transcoders only")
        config["model_kind"] = CROSS_LAYER
        _save_cross_layers(transcoder, folder)
    elif isinstance(transcoder, PerLayerTranscoder):
        config["model_kind"] = PER_LAYER
        if isinstance(activation, TopK):
            config |= {"activation": activation.name, "k": activation.k}
        _save_per_layers(transcoder, folder)
    else:
        raise ModelError(f"circuit-tracer's format holds transcoders, not {transcoder.kind}")
    (folder / CONFIG).write_text(yaml.safe_dump(config))


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: cannot be read as YAML ({reason})") from error
    kind = config.get("model_kind") if isinstance(config, dict) else None
    if kind not in (PER_LAYER, CROSS_LAYER):
        raise ModelError(
            f"{path}: model_kind is {kind!r}, expected {PER_LAYER!r} or {CROSS_LAYER!r}"
        )
    return config


def _point(config: dict[str, Any], field: str, known: dict[str, Any], folder: Path) -> Any:
    hook = config.get(field)
    if not isinstance(hook, str) or hook not in known:
        raise ModelError(f"{folder / CONFIG}: {field} is {hook!r}, expected one of {sorted(known)}")
    return known[hook]


def _layer_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """Files of a per-layer set in layer order: as listed, else `layer_{l}.safetensors`."""
    listed = config.get("transcoders")
    if listed:
        return [_listed_file(str(entry), folder) for entry in listed]
    count = len(list(folder.glob("layer_*.safetensors")))
    if count == 0:
        raise ModelError(
            f"{folder}: no layer_0.safetensors, and config.yaml lists no transcoders; "
            "nothing to load"
        )
    return [folder / f"layer_{index}.safetensors" for index in range(count)]


def _listed_file(entry: str, folder: Path) -> Path:
    """A local path inside `folder`, or `hf://owner/repo/path/in/repo[?revision=r]`."""
    if entry.startswith("hf://"):
        address = urlparse(entry)
        try:
            file = HubId.parse(f"{address.netloc}{address.path}")
        except ModelError as error:
            raise ModelError(f"{folder / CONFIG}: transcoder {entry!r}: {error}") from error
        revision = parse_qs(address.query).get("revision", [None])[0]
        return download(file.repo, revision, [file.subfolder]) / file.subfolder
    if Path(entry).is_absolute() or ".." in Path(entry).parts:
        raise ModelError(f"{folder / CONFIG}: transcoder {entry!r} lies outside the folder")
    return folder / entry


def _listed_layer(path: Path, config: dict[str, Any], lazy: bool) -> TranscoderLayer:
    """One layer, in circuit-tracer's own layout or in one of Gemma Scope's."""
    if path.suffix == ".npz":
        return gemma_scope.layer_from(path, lazy)
    file = TensorFile.open(path)
    if "w_enc" in file.shapes:
        return gemma_scope_2.layer_from(file, lazy)
    return _per_layer(file, config, lazy)


def _per_layer(file: TensorFile, config: dict[str, Any], lazy: bool) -> TranscoderLayer:
    file.only(("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "activation_function.threshold"))
    skip = file.optional("W_skip")
    threshold = file.optional("activation_function.threshold")
    return TranscoderLayer(
        W_enc=file.tensor("W_enc"),
        b_enc=file.tensor("b_enc"),
        decoder=file.decoder("W_dec", lazy),
        b_dec=file.tensor("b_dec"),
        activation=_activation(config, threshold, file),
        W_skip=None if skip is None else skip.T.contiguous(),
    )


def _activation(config: dict[str, Any], threshold: Tensor | None, file: TensorFile) -> Activation:
    """TopK and ReLU when config.yaml says so; otherwise JumpReLU where there is a threshold."""
    name, k = config.get("activation"), config.get("k")
    if threshold is not None and name in ("relu", "topk"):
        raise ModelError(f"{file.path}: has a threshold, but {CONFIG} says activation {name}")
    if name == "topk":
        if type(k) is not int:
            raise ModelError(f"{file.path.parent / CONFIG}: activation topk needs k, got {k!r}")
        return TopK(k)
    if name == "relu" or (name in (None, "auto") and threshold is None):
        return ReLU()
    if name not in (None, "auto", "jump_relu"):
        raise ModelError(
            f"{file.path.parent / CONFIG}: activation is {name!r}, "
            "expected relu, jump_relu, topk or auto"
        )
    if threshold is None:
        raise ModelError(f"{file.path}: activation {name} needs a threshold, found none")
    return JumpReLU(threshold)


def _cross_layers(folder: Path, config: dict[str, Any], lazy: bool) -> list[TranscoderLayer]:
    listed = config.get("transcoders")
    if listed:
        return _gemma_scope_2_layers([str(entry) for entry in listed], folder, lazy)
    count = len(list(folder.glob("W_enc_*.safetensors")))
    if count == 0:
        raise ModelError(f"{folder}: no W_enc_0.safetensors; nothing to load")
    skips = None
    if (folder / "W_skip.safetensors").is_file():
        skips = TensorFile.open(folder / "W_skip.safetensors").tensor("W_skip")
        if skips.ndim != 3 or len(skips) != count:
            raise ModelError(
                f"{folder / 'W_skip.safetensors'}: W_skip has shape {tuple(skips.shape)}, "
                f"expected ({count}, d_model, d_model)"
            )
    layers = []
    for index in range(count):
        encoder = TensorFile.open(folder / f"W_enc_{index}.safetensors")
        decoder = TensorFile.open(folder / f"W_dec_{index}.safetensors")
        threshold = encoder.optional(f"threshold_{index}")
        encoder.only(f"{key}_{index}" for key in ("W_enc", "b_enc", "b_dec", "threshold"))
        decoder.only([f"W_dec_{index}"])
        layers.append(
            TranscoderLayer(
                W_enc=encoder.tensor(f"W_enc_{index}"),
                b_enc=encoder.tensor(f"b_enc_{index}"),
                decoder=decoder.decoder(f"W_dec_{index}", lazy),
                b_dec=encoder.tensor(f"b_dec_{index}"),
                activation=_activation(config, threshold, encoder),
                W_skip=None if skips is None else skips[index],
            )
        )
    return layers


def _gemma_scope_2_layers(listed: list[str], folder: Path, lazy: bool) -> list[TranscoderLayer]:
    """One layer a file; one entry too many is left out, as circuit-tracer leaves out the last."""
    first = TensorFile.open(_listed_file(listed[0], folder))
    shape = first.shape("w_dec")
    count = shape[1] if len(shape) == 3 and len(listed) == shape[1] + 1 else len(listed)
    files = [first, *(TensorFile.open(_listed_file(entry, folder)) for entry in listed[1:count])]
    return [gemma_scope_2.layer_from(file, lazy, index) for index, file in enumerate(files)]


def _save_per_layers(transcoder: Transcoder, folder: Path) -> None:
    for index, layer in enumerate(transcoder.layers):
        found = {
            "W_enc": layer.W_enc,
            "b_enc": layer.b_enc,
            "W_dec": all_rows(layer.decoder)[:, 0],
            "b_dec": layer.b_dec,
        }
        found |= _threshold(layer, "activation_function.threshold")
        if layer.W_skip is not None:
            found["W_skip"] = layer.W_skip.T
        _write(found, folder / f"layer_{index}.safetensors")


def _save_cross_layers(transcoder: Transcoder, folder: Path) -> None:
    for index, layer in enumerate(transcoder.layers):
        encoder = {
            f"W_enc_{index}": layer.W_enc,
            f"b_enc_{index}": layer.b_enc,
            f"b_dec_{index}": layer.b_dec,
        }
        encoder |= _threshold(layer, f"threshold_{index}")
        _write(encoder, folder / f"W_enc_{index}.safetensors")
        decoder = {f"W_dec_{index}": all_rows(layer.decoder)}
        _write(decoder, folder / f"W_dec_{index}.safetensors")
    skips = [layer.W_skip for layer in transcoder.layers if layer.W_skip is not None]
    if skips:
        _write({"W_skip": torch.stack(skips)}, folder / "W_skip.safetensors")


def _one_activation(transcoder: Transcoder) -> Activation:
    """The activation of every layer, which config.yaml has room for once."""
    first, *others = (layer.activation for layer in transcoder.layers)
    for index, other in enumerate(others, start=1):
        if _named(other) != _named(first):
            raise ModelError(
                "circuit-tracer's format has one activation for all layers, but layer 0 has "
                f"{_named(first)}, layer {index} {_named(other)}"
            )
    return first


def _named(activation: Activation) -> str:
    return f"topk of {activation.k}" if isinstance(activation, TopK) else activation.name


def _threshold(layer: TranscoderLayer, key: str) -> dict[str, Tensor]:
    """Thresholds under `key`, where there are any. BatchTopK is a JumpReLU with one for all."""
    if isinstance(layer.activation, JumpReLU):
        return {key: layer.activation.threshold}
    if isinstance(layer.activation, BatchTopK):
        return {key: layer.activation.threshold.clamp(min=0).expand(len(layer.W_enc))}
    return {}


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, path)


FORMAT = Format("circuit-tracer", recognise, load, save, elsewhere)
