"""Dictionaries of the crosslayer-transcoder trainer: `config.yaml` and `checkpoint.safetensors`.

encoder.W (L, D, F), encoder.b (L, F); decoder.W_{m} (m + 1, F, D), the decoders of every source for
target m (a plain decoder.W (L, F, D) for per-layer ones), decoder.b (L, D); nonlinearity.theta
(1, L, F) or .threshold. Standardisers are folded into the weights when saved; where they are not,
they are folded in here. They read the residual stream before the MLP's norm and write the MLP's
output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
)
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.limits import Limits, by_target, plain
from replacement_models.formats.storage.rows import StackedDecoder, StoredRows, widened
from replacement_models.formats.storage.tensors import TensorFile, loaded
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG, WEIGHTS = "config.yaml", "checkpoint.safetensors"
DECODERS = ("Decoder", "CrosslayerDecoder")
NONLINEARITIES = ("ReLU", "JumpReLU", "PerLayerTopK", "BatchTopK", "PerLayerBatchTopK")
STANDARDIZERS = (
    *("DimensionwiseInputStandardizer", "DimensionwiseOutputStandardizer"),
    *("LayerwiseInputStandardizer", "LayerwiseOutputStandardizer"),
    *("Standardizer", None),
)


LIMITS = Limits(
    "crosslayer-transcoder",
    (CrossLayerTranscoder, PerLayerTranscoder),
    (ReLU, JumpReLU, ReLUTopK, BatchTopK),
    read=(ReadPoint.RESIDUAL,),
    write=(WritePoint.MLP_OUTPUT,),
    uniform=True,
)


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a dictionary.

    Args:
        folder: holds both files.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is torn, or a variant is not supported.
    """
    parts = _parts(folder / CONFIG)
    stored = _Stored(TensorFile.open(folder / WEIGHTS), folder / CONFIG, parts)
    stored.check()
    count = stored.file.shape("encoder.W")[0]
    kind = CrossLayerTranscoder if stored.cross_layer else PerLayerTranscoder
    return kind(
        [stored.layer(index, count, lazy) for index in range(count)],
        read=ReadPoint.RESIDUAL,
        write=WritePoint.MLP_OUTPUT,
    )


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a dictionary, already folded, into `folder`, which must exist.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    LIMITS.check(transcoder)
    layers, cross_layer = transcoder.layers, isinstance(transcoder, CrossLayerTranscoder)
    writes = [by_target(transcoder, target) for target in range(len(layers))]
    weights = {
        "encoder.W": torch.stack([layer.W_enc.T for layer in layers]),
        "encoder.b": torch.stack([layer.b_enc for layer in layers]),
        "decoder.b": torch.stack([layer.b_dec for layer in layers]),
    }
    if cross_layer:
        weights |= {f"decoder.W_{target}": rows for target, rows in enumerate(writes)}
    else:
        weights["decoder.W"] = torch.cat(writes)
    name, thresholds = _nonlinearity([layer.activation for layer in layers])
    save_file(plain(weights | thresholds), folder / WEIGHTS)
    size = {
        "d_acts": transcoder.d_model,
        "d_features": transcoder.features,
        "n_layers": len(layers),
    }
    parts = {
        "encoder": _part("clt.Encoder", size),
        "decoder": _part("clt.CrosslayerDecoder" if cross_layer else "clt.Decoder", size),
        "nonlinearity": _part(*_arguments(name, layers[0].activation, size)),
        "input_standardizer": None,
        "output_standardizer": None,
    }
    model = _part("clt.CrossLayerTranscoder", parts) | {"is_folded": True}
    (folder / CONFIG).write_text(yaml.safe_dump({"model": model}))


def _nonlinearity(activations: Sequence[Activation]) -> tuple[str, dict[str, Tensor]]:
    """Class name, and thresholds under their key."""
    thresholds = [one.threshold for one in activations if isinstance(one, JumpReLU | BatchTopK)]
    if isinstance(activations[0], JumpReLU):
        bandwidth = {"nonlinearity.bandwidth": torch.tensor(1.0)}
        return "JumpReLU", {"nonlinearity.theta": torch.stack(thresholds)[None]} | bandwidth
    if isinstance(activations[0], BatchTopK):
        return "PerLayerBatchTopK", {"nonlinearity.threshold": torch.cat(thresholds)}
    return ("PerLayerTopK" if isinstance(activations[0], ReLUTopK) else "ReLU"), {}


def _arguments(
    name: str, activation: Activation, size: dict[str, int]
) -> tuple[str, dict[str, Any]]:
    """Class path and arguments of a nonlinearity."""
    if name == "JumpReLU":
        return "jumprelu.JumpReLU", {k: size[k] for k in ("n_layers", "d_features")}
    if name == "ReLU":
        return "jumprelu.ReLU", {}
    k = getattr(activation, "k", 1)
    return f"topk.{name}", {"k": k, "e": 0.01, "n_layers": size["n_layers"]}


def _part(path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": f"crosslayer_transcoder.model.{path}", "init_args": dict(arguments)}


def _parts(path: Path) -> dict[str, Any]:
    """`init_args` of the model: its parts by name, each {class_path, init_args}."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(
            f"{path}: cannot be read as YAML ({' '.join(str(error).split())})"
        ) from error
    model = config.get("model") if isinstance(config, dict) else None
    parts = model.get("init_args") if isinstance(model, dict) else None
    if not isinstance(parts, dict):
        raise ModelError(f"{path}: has no model.init_args, expected the parts of a dictionary")
    return parts


@dataclass(frozen=True, eq=False)
class _Stored:
    """One file and the classes that say how to read it."""

    file: TensorFile
    path: Path
    parts: dict[str, Any]

    def named(self, part: str, expected: tuple[str | None, ...]) -> str | None:
        """Class name of a part, None where there is none."""
        given = self.parts.get(part)
        name = None if given is None else str(given.get("class_path", "")).rpartition(".")[2]
        if name not in expected:
            raise ModelError(
                f"{self.path}: {part} is {name!r}, a variant that is not supported; expected one "
                f"of {[one for one in expected if one]}"
            )
        return name

    @property
    def cross_layer(self) -> bool:
        """Whether decoders write to later layers."""
        return self.named("decoder", DECODERS) == "CrosslayerDecoder"

    def check(self) -> None:
        """Refuse tensors that nothing here reads."""
        kinds = ("mean", "std")
        known = {f"{side}put_standardizer.{kind}" for side in ("in", "out") for kind in kinds}
        known |= {"encoder.W", "encoder.b", "decoder.W", "decoder.b"}
        known |= {f"nonlinearity.{name}" for name in ("theta", "bandwidth", "threshold")}
        known |= {f"decoder.W_{index}" for index in range(self.file.shape("encoder.W")[0])}
        self.file.only(known)

    def statistics(self, side: str, index: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of one layer, 0 and 1 where they were folded in."""
        part = f"{side}_standardizer"
        name = self.named(part, STANDARDIZERS)
        if name in (None, "Standardizer"):
            return torch.zeros(1), torch.ones(1)
        mean, deviation = (self.file.tensor(f"{part}.{kind}") for kind in ("mean", "std"))
        return widened(mean[index]).reshape(-1), widened(deviation[index]).reshape(-1)

    def layer(self, index: int, count: int, lazy: bool) -> TranscoderLayer:
        """One layer, standardisers folded in."""
        mean, deviation = self.statistics("input", index)
        encoder = widened(self.file.part("encoder.W", index)).T / deviation
        bias = widened(self.file.part("encoder.b", index)) - encoder @ mean.expand(
            encoder.shape[1]
        ).to(encoder.dtype)
        targets = range(index, count if self.cross_layer else index + 1)
        rows = [
            StoredRows(
                self.file,
                f"decoder.W_{target}" if self.cross_layer else "decoder.W",
                at=index,
                by_target=self.statistics("output", target)[1],
            )
            for target in targets
        ]
        shift, scale = self.statistics("output", index)
        return TranscoderLayer(
            W_enc=encoder.contiguous(),
            b_enc=bias,
            decoder=loaded(StackedDecoder(rows), lazy),
            b_dec=widened(self.file.part("decoder.b", index)) * scale + shift,
            activation=self.activation(index),
        )

    def activation(self, index: int) -> Activation:
        """The activation of one layer."""
        name = self.named("nonlinearity", NONLINEARITIES)
        if name == "ReLU":
            return ReLU()
        if name == "JumpReLU":
            return JumpReLU(widened(self.file.tensor("nonlinearity.theta")[0, index]).clamp(min=0))
        if name == "PerLayerTopK":
            k = self.parts["nonlinearity"].get("init_args", {}).get("k")
            if type(k) is not int:
                raise ModelError(f"{self.path}: nonlinearity PerLayerTopK needs k, got {k!r}")
            return ReLUTopK(k)
        threshold = self.file.tensor("nonlinearity.threshold")
        at = index if name == "PerLayerBatchTopK" else 0
        return BatchTopK(widened(threshold[at : at + 1]))


FORMAT = Format("crosslayer-transcoder", recognise, load, save)
