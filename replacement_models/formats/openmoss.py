"""OpenMOSS (Llamascopium) dictionaries: `config.json` and `sae_weights.safetensors`.

Cross-layer (`sae_type: clt`): W_E (L, D, F), b_E (L, F), W_D.{m} (m + 1, F, D), b_D.{m} (D).
Per-layer (`sae_type: sae` with different hook points), a folder a layer: W_E (D, F), b_E (F), W_D
(F, D), b_D (D). Both: `activation_function.log_jumprelu_threshold` and, where norm_activation is
`dataset-wise`, dataset_average_activation_norm.{hook point}, by which inputs and outputs were
brought to a mean norm of √D: folded in; activations are in units of the real input, as in
OpenMOSS's own inference mode. `sparsity_include_decoder_norm` gates a feature by its pre-activation
times the norm of its whole decoder: folded into the threshold (JumpReLU) or into the feature's unit
(TopK).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement_models.dictionaries.activation import Activation, JumpReLU, ReLU, ReLUTopK
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.limits import Limits, by_target, plain
from replacement_models.formats.storage.members import members
from replacement_models.formats.storage.points import (
    READ,
    WRITE,
    holds,
    hook_read,
    hook_written,
    in_layer_order,
    one_of,
    placed,
    read_json,
    refuse,
)
from replacement_models.formats.storage.rows import StackedDecoder, StoredRows, widened
from replacement_models.formats.storage.tensors import TensorFile, all_rows, loaded
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm."
BLOCK = 4096
"""Decoder rows whose norms are taken at once."""


LIMITS = Limits(
    "OpenMOSS",
    (CrossLayerTranscoder, PerLayerTranscoder),
    (ReLU, JumpReLU, ReLUTopK),
    uniform=True,
)
NAMES = {"relu": "relu", "jump_relu": "jumprelu", "relu_topk": "topk"}


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    if (folder / "sae_weights.dcp").exists() and holds(folder / CONFIG, "sae_type"):
        return True
    return any(holds(member / CONFIG, "sae_type") for member in members(folder, CONFIG, WEIGHTS))


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a cross-layer transcoder, or a set of per-layer ones, one folder a layer.

    Args:
        folder: holds the files, or the folders at any depth.
        lazy: leave decoder rows on disk; where decoder norms gate, they are read through once.

    Raises:
        ModelError: a file is missing or torn, a layer is, or a variant is not supported.
    """
    if (folder / "sae_weights.dcp").exists() and not (folder / WEIGHTS).exists():
        raise ModelError(
            f"{folder}: sae_weights.dcp is a distributed checkpoint, a variant that is not "
            f"supported; save it as {WEIGHTS}"
        )
    files = [_Stored.open(member) for member in members(folder, CONFIG, WEIGHTS)]
    if len(files) == 1 and files[0].cross_layer:
        layers = [files[0].layer(index, lazy) for index in range(files[0].count)]
        kind: type[Transcoder] = CrossLayerTranscoder
    else:
        found = []
        for file in files:
            refuse(file.config, file.path, sae_type=("sae",))
            found.append((file.sources[0][0], file.layer(0, lazy)))
        layers, kind = in_layer_order(found, folder), PerLayerTranscoder
    return kind(
        layers,
        read=one_of(
            {point for file in files for _, point in file.sources}, "hook_point_in", folder
        ),
        write=one_of(
            {point for file in files for _, point in file.targets}, "hook_point_out", folder
        ),
    )


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a transcoder, folded and with no gate by norms, into `folder`, which must exist.

    Thresholds are stored as logarithms.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    LIMITS.check(transcoder)
    layers = range(len(transcoder.layers))
    hooks = {
        "in": [hook_read(transcoder, index) for index in layers],
        "out": [hook_written(transcoder, index) for index in layers],
    }
    if isinstance(transcoder, CrossLayerTranscoder):
        each = [_tensors(transcoder, index) for index in layers]
        weights = {key: torch.stack([layer[key] for layer in each]) for key in each[0]}
        weights |= {f"W_D.{target}": by_target(transcoder, target) for target in layers}
        weights |= {f"b_D.{index}": transcoder.layers[index].b_dec for index in layers}
        _write(transcoder, {f"hook_points_{end}": hooks[end] for end in hooks}, weights, folder)
        return
    for index, layer in enumerate(transcoder.layers):
        weights = _tensors(transcoder, index)
        weights |= {"W_D": all_rows(layer.decoder)[:, 0], "b_D": layer.b_dec}
        own = {f"hook_point_{end}": hooks[end][index] for end in hooks}
        (folder / f"layer_{index}").mkdir()
        _write(transcoder, own, weights, folder / f"layer_{index}")


def _tensors(transcoder: Transcoder, index: int) -> dict[str, Tensor]:
    """One layer's weights but for what is written."""
    layer = transcoder.layers[index]
    found = {"W_E": layer.W_enc.T, "b_E": layer.b_enc}
    if isinstance(layer.activation, JumpReLU):
        found[THRESHOLD] = layer.activation.threshold.log()
    return found


def _write(
    transcoder: Transcoder, hooks: dict[str, Any], weights: dict[str, Tensor], folder: Path
) -> None:
    activation = transcoder.layers[0].activation
    config = {
        "sae_type": "clt" if isinstance(transcoder, CrossLayerTranscoder) else "sae",
        "d_model": transcoder.d_model,
        "expansion_factor": transcoder.features / transcoder.d_model,
        "use_decoder_bias": True,
        "act_fn": NAMES[activation.name],
        "top_k": getattr(activation, "k", 50),
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
    }
    (folder / CONFIG).write_text(json.dumps(config | hooks, indent=2) + "\n")
    save_file(plain(weights), folder / WEIGHTS)


@dataclass(frozen=True, eq=False)
class _Stored:
    """One file and what its configuration says of it."""

    file: TensorFile
    path: Path
    config: dict[str, Any]
    cross_layer: bool
    sources: list[tuple[int, ReadPoint]]
    targets: list[tuple[int, WritePoint]]

    @classmethod
    def open(cls, folder: Path) -> "_Stored":
        path = folder / CONFIG
        config = read_json(path)
        refuse(
            config,
            path,
            sae_type=("sae", "clt"),
            act_fn=("relu", "jumprelu", "topk"),
            norm_activation=("dataset-wise", "inference"),
            use_glu_encoder=(False,),
        )
        stored = cls(
            TensorFile.open(folder / WEIGHTS),
            path,
            config,
            config.get("sae_type") == "clt",
            [
                placed(name, READ, "hook_point_in", path)
                for name in _listed(config, "hook_point", "in")
            ],
            [
                placed(name, WRITE, "hook_point_out", path)
                for name in _listed(config, "hook_point", "out")
            ],
        )
        stored.check()
        return stored

    @property
    def count(self) -> int:
        """Layers in this file."""
        return len(self.sources)

    def check(self) -> None:
        """Refuse tensors nothing here reads, and layers out of order."""
        known = {"W_E", "b_E", THRESHOLD, *(k for k in self.file.shapes if k.startswith(NORM))}
        known |= {self.decoder(index) for index in range(self.count)}
        known |= {self.bias(index) for index in range(self.count)}
        self.file.only(known)
        layers = [layer for layer, _ in self.sources]
        if layers != [layer for layer, _ in self.targets] or (
            self.cross_layer and layers != list(range(self.count))
        ):
            raise ModelError(
                f"{self.path}: hook points read layers {layers} and write "
                f"{[layer for layer, _ in self.targets]}; expected the same, 0 and up"
            )

    def decoder(self, target: int) -> str:
        """Key of the decoders that write to a layer."""
        return f"W_D.{target}" if self.cross_layer else "W_D"

    def bias(self, target: int) -> str:
        """Key of a layer's decoder bias."""
        return f"b_D.{target}" if self.cross_layer else "b_D"

    def tensor(self, key: str, index: int) -> Tensor:
        """One layer's encoder weights."""
        return widened(self.file.part(key, index) if self.cross_layer else self.file.tensor(key))

    def scale(self, end: str, index: int) -> Tensor:
        """√D over the mean norm that activations had at one end of a layer, (1)."""
        if self.config.get("norm_activation", "dataset-wise") == "inference":
            return torch.ones(1)
        name = NORM + _listed(self.config, "hook_point", end)[index]
        width = float(self.file.shape("W_E")[-2]) ** 0.5
        return width / widened(self.file.tensor(name)).reshape(1)

    def layer(self, index: int, lazy: bool) -> TranscoderLayer:
        """One layer, normalisation and gate folded in."""
        targets = range(index, self.count if self.cross_layer else index + 1)
        at = index if self.cross_layer else None
        read = self.scale("in", index)
        plain = [StoredRows(self.file, self.decoder(target), at) for target in targets]
        activation, unit = self.gate(index, plain, read)
        rows = [
            StoredRows(
                self.file,
                self.decoder(target),
                at,
                by_target=read / self.scale("out", target),
                by_feature=None if unit is None else torch.where(unit > 0, 1 / unit, 0),
            )
            for target in targets
        ]
        unit = torch.ones(1) if unit is None else unit
        return TranscoderLayer(
            W_enc=(self.tensor("W_E", index).T * unit[:, None]).contiguous(),
            b_enc=self.tensor("b_E", index) / read * unit,
            decoder=loaded(StackedDecoder(rows), lazy),
            b_dec=self.decoder_bias(index) / self.scale("out", index),
            activation=activation,
        )

    def gate(
        self, index: int, rows: Sequence[StoredRows], read: Tensor
    ) -> tuple[Activation, Tensor | None]:
        """The activation of one layer, and by what each feature's unit is multiplied."""
        name = self.config.get("act_fn", "relu")
        if name == "relu":
            return ReLU(), None
        gated = self.config.get("sparsity_include_decoder_norm", True)
        norm = _norms(rows) if gated else torch.ones(rows[0].shape[0])
        if name == "topk":
            k = self.config.get("top_k")
            if type(k) is not int:
                raise ModelError(f"{self.path}: act_fn topk needs top_k, got {k!r}")
            return ReLUTopK(k), norm if gated else None
        return JumpReLU(self.tensor(THRESHOLD, index).exp() / norm / read), None

    def decoder_bias(self, index: int) -> Tensor:
        """A layer's decoder bias, zero where there is none."""
        if self.config.get("use_decoder_bias", True):
            return widened(self.file.tensor(self.bias(index)))
        return torch.zeros(self.file.shape("W_E")[-2])


def _listed(config: dict[str, Any], field: str, end: str) -> list[Any]:
    """Hook points of one end, whether the field holds one or a list."""
    many = config.get(f"{field}s_{end}")
    return many if isinstance(many, list) else [config.get(f"{field}_{end}")]


def _norms(rows: Sequence[StoredRows]) -> Tensor:
    """(F) norm of each feature's decoder over all targets."""
    count = rows[0].shape[0]
    blocks = torch.arange(count).split(BLOCK)
    squares = [sum(part.rows(block).square().sum(1) for part in rows) for block in blocks]
    return torch.cat([torch.as_tensor(square) for square in squares]).sqrt()


FORMAT = Format("openmoss", recognise, load, save)
