"""SAELens' dictionaries: a folder a layer with `cfg.json` and `sae_weights.safetensors`.

W_enc (D, F), b_enc (F), W_dec (F, D), b_dec (D); `threshold` (before version 6 `log_threshold`) for
JumpReLU; W_skip (D_out, D_in), applied as `x @ W_skip.T`. `cfg.json` names architecture and, at the
top or under `metadata`, hook_name and, of transcoders, hook_name_out. JumpReLU and TopK keep what
is positive only. An autoencoder may take b_dec off what it reads, which is folded in; BatchTopK is
written as the JumpReLU it is.
A mean norm that was taken out of the activations (`expected_average_only_in`) is folded in from
`activation_scaler.json`. Layouts as of SAELens 6.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement_models.dictionaries.activation import (
    Activation,
    BatchTopK,
    JumpReLU,
    ReLU,
    ReLUTopK,
)
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.limits import Limits, plain
from replacement_models.formats.storage.members import members
from replacement_models.formats.storage.points import (
    READ,
    STAGED,
    WRITE,
    hook_read,
    hook_written,
    one_of,
    placed,
    read_json,
    refuse,
    with_gaps,
)
from replacement_models.formats.storage.rows import StackedDecoder, StoredRows, widened
from replacement_models.formats.storage.tensors import TensorFile, all_rows, loaded
from replacement_models.sites import Stage, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
SINCE = "6.0.0"
"""SAELens's version whose layout is written; it rewrites what says none as an older one."""
AUTOENCODERS = {"standard", "jumprelu", "topk"}
PLAIN = {"transcoder", "skip_transcoder", "standard", "topk"}
JUMPING = {"jumprelu_transcoder", "jumprelu_skip_transcoder", "jumprelu"}
TENSORS = (
    *("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"),
    *("threshold", "log_threshold", "scaling_factor"),
)


LIMITS = Limits("SAELens", (PerLayerTranscoder,), (ReLU, JumpReLU, BatchTopK), skip=True)
ENCODING = (ReLU, JumpReLU, BatchTopK, ReLUTopK)
"""Activations of autoencoders."""


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return bool(members(folder, CONFIG, WEIGHTS))


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a set of transcoders or of autoencoders, one folder a layer.

    Args:
        folder: holds the folders, at any depth.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is missing or torn, a layer is, or a variant is not supported.
    """
    paths = members(folder, CONFIG, WEIGHTS)
    configs = [(path, _config(path / CONFIG)) for path in paths]
    kinds = {config["architecture"] in AUTOENCODERS for _, config in configs}
    if len(kinds) > 1:
        raise ModelError(f"{folder}: holds autoencoders beside transcoders; load one kind alone")
    return _autoencoders(folder, configs, lazy) if True in kinds else _set(folder, configs, lazy)


def _set(folder: Path, configs: list[tuple[Path, dict[str, Any]]], lazy: bool) -> Transcoder:
    found, reads, writes, models = [], set(), set(), set()
    for member, config in configs:
        path = member / CONFIG
        layer, read = placed(config.get("hook_name"), READ, "hook_name", path)
        _, write = placed(config.get("hook_name_out"), WRITE, "hook_name_out", path)
        reads.add(read)
        writes.add(write)
        models.add(str(config.get("model_name", "")))
        found.append((layer, _layer(TensorFile.open(member / WEIGHTS), config, lazy)))
    return PerLayerTranscoder(
        with_gaps(found, folder),
        read=one_of(reads, "hook_name", folder),
        write=one_of(writes, "hook_name_out", folder),
        model=models.pop() if len(models) == 1 else "",
    )


def _autoencoders(
    folder: Path, configs: list[tuple[Path, dict[str, Any]]], lazy: bool
) -> SparseAutoencoder:
    found, stages, models = [], set(), set()
    for member, config in configs:
        path = member / CONFIG
        layer, stage = placed(config.get("hook_name"), STAGED, "hook_name", path)
        stages.add(stage)
        models.add(str(config.get("model_name", "")))
        made = _layer(TensorFile.open(member / WEIGHTS), config, lazy)
        if config.get("apply_b_dec_to_input"):
            made = replace(made, b_enc=made.b_enc - made.W_enc @ made.b_dec)
        found.append((layer, made))
    stage = one_of(stages, "hook_name", folder)
    return SparseAutoencoder(
        [replace(one, stage=stage) for one in with_gaps(found, folder)],
        write=WritePoint.POST_NORM,
        model=models.pop() if len(models) == 1 else "",
    )


def _config(path: Path) -> dict[str, Any]:
    """Old and new fields under their new names, `metadata` flattened into them."""
    config = read_json(path)
    renamed = {"activation_fn_str": "activation_fn", "hook_point": "hook_name"}
    config = {renamed.get(key, key): value for key, value in config.items()}
    config |= config.get("metadata") or {}
    architecture = config.get("architecture")
    if architecture not in PLAIN | JUMPING:
        raise ModelError(
            f"{path}: architecture is {architecture!r}, expected one of {sorted(PLAIN | JUMPING)}"
        )
    autoencoder = architecture in AUTOENCODERS
    refuse(
        config,
        path,
        apply_b_dec_to_input=(False, True) if autoencoder else (False,),
        finetuning_scaling_factor=(False, None),
        reshape_activations=("none", None),
        rescale_acts_by_decoder_norm=(False,),
        normalize_activations=("none", None, False, "expected_average_only_in", True),
        activation_fn=("relu", "jumprelu", "topk", None),
    )
    return config


def _layer(file: TensorFile, config: dict[str, Any], lazy: bool) -> TranscoderLayer:
    file.only(TENSORS)
    once = file.optional("scaling_factor")
    if once is not None and not torch.equal(once, torch.ones_like(once)):
        raise ModelError(f"{file.path}: scaling_factor is not 1, a variant that is not supported")
    scale = _scale(file.path.parent, config)
    skip = file.optional("W_skip")
    layer = TranscoderLayer(
        W_enc=file.tensor("W_enc").T.contiguous(),
        b_enc=file.tensor("b_enc"),
        decoder=file.decoder("W_dec", lazy),
        b_dec=file.tensor("b_dec"),
        activation=_activation(file, config),
        W_skip=None if skip is None else skip.T.contiguous(),
    )
    if scale == 1:
        return layer
    rows = StoredRows(file, "W_dec", by_target=torch.tensor([1 / scale]))
    layer = layer.to(torch.device("cpu"), widened(layer.W_enc[:0]).dtype)
    return replace(
        layer,
        W_enc=layer.W_enc * scale,
        decoder=loaded(StackedDecoder([rows]), lazy),
        b_dec=layer.b_dec / scale,
    )


def _scale(folder: Path, config: dict[str, Any]) -> float:
    """Factor that brought the mean norm of the activations to √D in training."""
    if config.get("normalize_activations") not in ("expected_average_only_in", True):
        return 1.0
    if not (folder / SCALER).is_file():
        raise ModelError(
            f"{folder / CONFIG}: normalize_activations is {config['normalize_activations']!r}, but "
            f"there is no {SCALER} with the factor to fold in; save the transcoder folded"
        )
    factor = read_json(folder / SCALER).get("scaling_factor")
    if not isinstance(factor, int | float) or not factor > 0:
        raise ModelError(f"{folder / SCALER}: scaling_factor is {factor!r}, expected above 0")
    return float(factor)


def _activation(file: TensorFile, config: dict[str, Any]) -> Activation:
    log = file.optional("log_threshold")
    threshold = file.optional("threshold") if log is None else log.exp()
    name = config.get("activation_fn")
    if name == "topk" or config["architecture"] == "topk":
        k = (config.get("activation_fn_kwargs") or {}).get("k", config.get("k"))
        if type(k) is not int:
            raise ModelError(f"{file.path.parent / CONFIG}: activation_fn topk needs k, got {k!r}")
        return ReLUTopK(k)
    if config["architecture"] in JUMPING or name == "jumprelu":
        if threshold is None:
            raise ModelError(f"{file.path}: JumpReLU needs a threshold, found none")
        return JumpReLU(threshold.clamp(min=0))
    if threshold is not None:
        raise ModelError(
            f"{file.path}: has a threshold, but architecture is {config['architecture']!r}"
        )
    return ReLU()


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a folder `layer_{l}` for each layer into `folder`, which must exist.

    Autoencoders may lack layers; the last one written is then the last one read.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    autoencoder = isinstance(transcoder, SparseAutoencoder)
    if autoencoder:
        replace(LIMITS, kinds=(SparseAutoencoder,), activations=ENCODING, gaps=True).check(
            transcoder
        )
    else:
        LIMITS.check(transcoder)
    for index, layer in enumerate(transcoder.layers):
        if layer.is_empty:
            continue
        member = folder / f"layer_{index}"
        member.mkdir()
        places = _autoencoder(layer, index) if autoencoder else _transcoder(transcoder, index)
        config = _described(transcoder, layer) | places
        config["metadata"] |= {"model_name": transcoder.model, "sae_lens_version": SINCE}
        (member / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(plain(_tensors(layer)), member / WEIGHTS)


def _described(transcoder: Transcoder, layer: TranscoderLayer) -> dict[str, Any]:
    return {
        "d_in": transcoder.d_model,
        "d_sae": len(layer.W_enc),
        "dtype": str(layer.W_enc.dtype).removeprefix("torch."),
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }


def _transcoder(transcoder: Transcoder, index: int) -> dict[str, Any]:
    """What only transcoders say."""
    layer = transcoder.layers[index]
    skip = "" if layer.W_skip is None else "skip_"
    jump = "" if isinstance(layer.activation, ReLU) else "jumprelu_"
    return {
        "architecture": f"{jump}{skip}transcoder",
        "d_out": transcoder.d_model,
        "metadata": {
            "hook_name": hook_read(transcoder, index),
            "hook_name_out": hook_written(transcoder, index),
        },
    }


def _autoencoder(layer: TranscoderLayer, index: int) -> dict[str, Any]:
    """What only autoencoders say."""
    stage = Stage.MLP_OUT if layer.stage is None else layer.stage
    named: dict[str, Any] = {"metadata": {"hook_name": f"blocks.{index}.hook_{stage.name.lower()}"}}
    if isinstance(layer.activation, ReLUTopK):
        named |= {"k": layer.activation.k, "rescale_acts_by_decoder_norm": False}
        return named | {"architecture": "topk"}
    return named | {
        "architecture": "standard" if isinstance(layer.activation, ReLU) else "jumprelu"
    }


def _tensors(layer: TranscoderLayer) -> dict[str, Tensor]:
    found = {
        "W_enc": layer.W_enc.T,
        "b_enc": layer.b_enc,
        "W_dec": all_rows(layer.decoder)[:, 0],
        "b_dec": layer.b_dec,
    }
    if isinstance(layer.activation, JumpReLU):
        found["threshold"] = layer.activation.threshold
    if isinstance(layer.activation, BatchTopK):
        found["threshold"] = layer.activation.threshold.clamp(min=0).expand(len(layer.W_enc))
    if layer.W_skip is not None:
        found["W_skip"] = layer.W_skip.T
    return found


FORMAT = Format("saelens", recognise, load, save)
