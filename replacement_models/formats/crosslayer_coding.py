"""crosslayer-coding's dictionaries: `cfg.json`, one safetensors file, and `norm_stats.json`.

encoder_module.encoders.{l}.weight (F, D) and .bias_param (F); decoder_module.decoders.{s->t}.weight
(D, F) and .bias_param (D), or one a source or a target where `decoder_tying` says so;
theta_manager.log_threshold (L, F), passed when reached; decoder_module.feature_scale.{t} (F);
decoder_module.skip_weights.{t} or .{s->t} (D, D), applied as `x @ skip.T`. Where
normalization_method is `mean_std`, inputs and outputs were standardised by `norm_stats.json`
({layer: {inputs, targets: {mean, std}}}), beside `cfg.json` or one folder up; where it is
`sqrt_d_model`, they were multiplied by √D. Both are folded in.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement_models.dictionaries.activation import Activation, JumpReLU, ReLU
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.limits import Limits, plain
from replacement_models.formats.storage.points import (
    READ,
    WRITE,
    holds,
    hook_read,
    hook_written,
    placed,
    read_json,
    refuse,
)
from replacement_models.formats.storage.rows import StackedDecoder, StoredRows, widened
from replacement_models.formats.storage.tensors import TensorFile, all_rows, loaded
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG, WEIGHTS, STATISTICS = "cfg.json", "model.safetensors", "norm_stats.json"
THRESHOLD = "theta_manager.log_threshold"
EPSILON = 1e-6
"""Added to standard deviations by the trainer when it reads them."""
METHODS = {
    **dict.fromkeys(("auto", "estimated_mean_std"), "mean_std"),
    **dict.fromkeys(("auto_sqrt_d_model", "estimated_mean_std_sqrt_d_model"), "sqrt_d_model"),
}
"""Old names of normalisation methods."""

LIMITS = Limits(
    "crosslayer-coding", (CrossLayerTranscoder,), (ReLU, JumpReLU), skip=True, uniform=True
)


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return holds(folder / CONFIG, "num_layers", "num_features")


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a cross-layer transcoder.

    Args:
        folder: holds `cfg.json` and one safetensors file.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is missing or torn, or a variant is not supported.
    """
    path = folder / CONFIG
    config = _config(path)
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) != 1:
        raise ModelError(
            f"{folder}: has {len(weights)} safetensors files, expected the one to read; remove the "
            "others"
        )
    stored = _Stored(TensorFile.open(weights[0]), config, path, _statistics(folder, config))
    stored.check()
    read, write = _points(config, path)
    return CrossLayerTranscoder(
        [stored.layer(index, lazy) for index in range(config["num_layers"])],
        read=read,
        write=write,
        model=str(config.get("model_name") or ""),
    )


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a cross-layer transcoder, untied and folded, into `folder`, which must exist.

    A decoder bias stands with its own layer's decoder. Thresholds are stored as logarithms, one
    floating point step higher, since there they are passed when reached.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    LIMITS.check(transcoder)
    weights: dict[str, Tensor] = {}
    thresholds = []
    for source, layer in enumerate(transcoder.layers):
        encoder = f"encoder_module.encoders.{source}"
        weights |= {f"{encoder}.weight": layer.W_enc, f"{encoder}.bias_param": layer.b_enc}
        rows = all_rows(layer.decoder)
        for slot, target in enumerate(transcoder.targets(source)):
            name = f"decoder_module.decoders.{source}->{target}"
            bias = layer.b_dec if slot == 0 else torch.zeros_like(layer.b_dec)
            weights |= {f"{name}.weight": rows[:, slot].T, f"{name}.bias_param": bias}
        if layer.W_skip is not None:
            weights[f"decoder_module.skip_weights.{source}->{source}"] = layer.W_skip.T
        if isinstance(layer.activation, JumpReLU):
            above = torch.full_like(layer.activation.threshold, torch.inf)
            thresholds.append(torch.nextafter(layer.activation.threshold, above).log())
    if thresholds:
        weights[THRESHOLD] = torch.stack(thresholds)
    config = {
        "num_features": transcoder.features,
        "num_layers": len(transcoder.layers),
        "d_model": transcoder.d_model,
        "model_name": transcoder.model,
        "normalization_method": "none",
        "activation_fn": "jumprelu" if thresholds else "relu",
        "tl_input_template": hook_read(transcoder, 0).replace("0", "{}", 1),
        "tl_output_template": hook_written(transcoder, 0).replace("0", "{}", 1),
        "decoder_tying": "none",
        "skip_connection": any(layer.W_skip is not None for layer in transcoder.layers),
    }
    save_file(plain(weights), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    method = config.get("normalization_method", "none")
    config["normalization_method"] = METHODS.get(method, method)
    if config.get("sqrt_d_model_normalize"):
        config["normalization_method"] = "sqrt_d_model"
    refuse(
        config,
        path,
        activation_fn=("jumprelu", "relu"),
        normalization_method=("none", "mean_std", "sqrt_d_model"),
        decoder_tying=("none", "per_source", "per_target"),
    )
    if type(config["num_layers"]) is not int or config["num_layers"] < 1:
        raise ModelError(f"{path}: num_layers is {config['num_layers']!r}, expected 1 or more")
    return config


def _points(config: dict[str, Any], path: Path) -> tuple[ReadPoint, WritePoint]:
    """Where it reads and writes, from either kind of template."""
    field, out = "mlp_input_template", "mlp_output_template"
    if config.get(field) is None and config.get("tl_input_template") is not None:
        field, out = "tl_input_template", "tl_output_template"
    source, target = config.get(field), config.get(out)
    if isinstance(source, str) and source.endswith(".c_fc"):
        source += ".input"
    return placed(source, READ, field, path)[1], placed(target, WRITE, out, path)[1]


def _statistics(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    if config["normalization_method"] != "mean_std":
        return {}
    for path in (folder / STATISTICS, folder.parent / STATISTICS):
        if path.is_file():
            return read_json(path)
    raise ModelError(
        f"{folder / CONFIG}: normalization_method is 'mean_std', but there is no {STATISTICS} to "
        "fold in; put the one of the activations it was trained on beside it"
    )


@dataclass(frozen=True, eq=False)
class _Stored:
    """One file and what its configuration says of it."""

    file: TensorFile
    config: dict[str, Any]
    path: Path
    statistics: dict[str, Any]

    @property
    def count(self) -> int:
        """Layers."""
        return int(self.config["num_layers"])

    def check(self) -> None:
        """Refuse what no linear decoder can express, unless it is zero, and a width not its own."""
        shape = self.file.shapes.get("encoder_module.encoders.0.weight")
        said = self.config.get("d_model")
        if shape is not None and said is not None and said != shape[-1]:
            raise ModelError(
                f"{self.path}: d_model is {said!r:.40}, expected {shape[-1]}, its encoders' width"
            )
        for key in self.file.shapes:
            across = key.startswith("decoder_module.skip_weights.") and "->" in key
            source, _, target = key.rpartition(".")[2].partition("->")
            offset = key.startswith("decoder_module.feature_offset")
            if (offset or (across and source != target)) and self.file.tensor(key).any():
                raise ModelError(
                    f"{self.file.path}: {key} is not zero, a variant that is not supported"
                )

    def moments(self, end: str, layer: int) -> tuple[Tensor, Tensor]:
        """Mean taken off and what was divided by, at one end of a layer."""
        method = self.config["normalization_method"]
        if method == "none":
            return torch.zeros(1), torch.ones(1)
        if method == "sqrt_d_model":
            width = self.file.shapes["encoder_module.encoders.0.weight"][-1]
            return torch.zeros(1), torch.tensor([width**-0.5])
        try:
            found = self.statistics[str(layer)][end]
            return torch.tensor(found["mean"]), torch.tensor(found["std"]) + EPSILON
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.path.parent}: {STATISTICS} has no mean and std of layer {layer}'s {end}"
            ) from error

    def decoder(self, source: int, target: int) -> str:
        """Key of a decoder, less `.weight`."""
        tying = self.config.get("decoder_tying", "none")
        name = {"per_source": str(source), "per_target": str(target)}.get(
            tying, f"{source}->{target}"
        )
        return f"decoder_module.decoders.{name}"

    def layer(self, index: int, lazy: bool) -> TranscoderLayer:
        """One layer, normalisation folded in."""
        mean, deviation = self.moments("inputs", index)
        name = f"encoder_module.encoders.{index}"
        encoder = widened(self.file.tensor(f"{name}.weight")) / deviation
        offset = encoder @ mean.expand(encoder.shape[1]).to(encoder.dtype)
        skip, shift = self.skip(index)
        return TranscoderLayer(
            W_enc=encoder,
            b_enc=widened(self.file.tensor(f"{name}.bias_param")) - offset,
            decoder=loaded(
                StackedDecoder([self.rows(index, target) for target in range(index, self.count)]),
                lazy,
            ),
            b_dec=self.bias(index) - shift,
            activation=self.activation(index),
            W_skip=skip,
        )

    def rows(self, source: int, target: int) -> StoredRows:
        """What features of `source` write to `target`."""
        scale = self.file.optional(f"decoder_module.feature_scale.{target}")
        return StoredRows(
            self.file,
            f"{self.decoder(source, target)}.weight",
            columns=True,
            by_target=self.moments("targets", target)[1],
            by_feature=None if scale is None else widened(scale),
        )

    def bias(self, target: int) -> Tensor:
        """Sum of the biases of every decoder used for a target, and the mean put back."""
        tied = self.config.get("decoder_tying", "none") == "per_target"
        sources = [target] if tied else range(target + 1)
        biases = [
            self.file.tensor(f"{self.decoder(source, target)}.bias_param") for source in sources
        ]
        mean, deviation = self.moments("targets", target)
        return widened(torch.stack(biases)).sum(0) * deviation + mean

    def skip(self, index: int) -> tuple[Tensor | None, Tensor]:
        """A layer's linear skip in real units, and what it makes of the input's mean."""
        name = f"decoder_module.skip_weights.{index}"
        found = self.file.optional(name if name in self.file.shapes else f"{name}->{index}")
        if found is None:
            return None, torch.zeros(1)
        mean, read = self.moments("inputs", index)
        _, write = self.moments("targets", index)
        weight = (widened(found) / read).T * write
        return weight.contiguous(), mean.expand(len(weight)).to(weight.dtype) @ weight

    def activation(self, index: int) -> Activation:
        """ReLU, or a JumpReLU that fires when its threshold is reached, not only above it."""
        if self.config.get("activation_fn", "jumprelu") == "relu":
            return ReLU()
        threshold = widened(self.file.part(THRESHOLD, index)).exp()
        return JumpReLU(torch.nextafter(threshold, torch.zeros_like(threshold)))


FORMAT = Format("crosslayer-coding", recognise, load, save)
