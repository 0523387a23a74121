"""Sparse coders of sparsify and of clt-training: a folder a hook point, such as `layers.3.mlp`.

`cfg.json` and `sae.safetensors`: encoder.weight (F, D), encoder.bias (F), W_dec (F, D), b_dec (D),
W_skip (D, D) applied as `x @ W_skip.T`. clt-training's cross-layer ones (n_targets above 0) have
W_decs.{j}, b_decs.{j} for target l + j, or one W_dec for all (`per_source_tied`); with
`coalesce_topk: concat` a target has one W_dec (F, D) for features of every source, with `per-layer`
one of (sources · F, D). post_enc_scale(s) multiply a feature's row; in_norm and out_norm (1) bring
inputs and outputs to a mean norm of √D. All of it is folded in. TopK keeps what is positive. The
`config.json` of a run names other input hook points, where it read them before the norm.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement_models.dictionaries.activation import ReLUTopK
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.errors import ModelError
from replacement_models.formats.contract import Format
from replacement_models.formats.storage.limits import Limits, plain
from replacement_models.formats.storage.members import members
from replacement_models.formats.storage.points import (
    READ,
    WRITE,
    in_layer_order,
    one_of,
    placed,
    read_json,
    refuse,
)
from replacement_models.formats.storage.rows import (
    NoRows,
    RowSource,
    StackedDecoder,
    StoredRows,
    widened,
)
from replacement_models.formats.storage.tensors import TensorFile, all_rows, loaded
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
SINGLE = (
    *("encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"),
    *("post_enc", "post_enc_scale", "in_norm", "out_norm"),
)
LISTED = ("W_decs", "b_decs", "W_skips", "post_encs", "post_enc_scales")


LIMITS = Limits(
    "sparsify",
    (CrossLayerTranscoder, PerLayerTranscoder),
    (ReLUTopK,),
    read=(ReadPoint.NORMED,),
    write=(WritePoint.MLP_OUTPUT,),
    skip=True,
)


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return bool(members(folder, CONFIG, WEIGHTS))


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a per-layer set or a cross-layer transcoder, one folder a layer.

    Args:
        folder: holds a folder for each hook point.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file is missing or torn, a layer is, or a variant is not supported.
    """
    found, writes = [], set()
    for member in members(folder, CONFIG, WEIGHTS):
        name = member.name if member == folder else member.relative_to(folder).as_posix()
        layer, write = placed(f"{name}.output", WRITE, "folder", folder)
        writes.add(write)
        found.append((layer, _Coder.open(member)))
    coders = in_layer_order(found, folder)
    cross_layer = any(coder.targets > 0 for coder in coders)
    dictionary = _Dictionary(coders, cross_layer)
    kind = CrossLayerTranscoder if cross_layer else PerLayerTranscoder
    return kind(
        [dictionary.layer(index, lazy) for index in range(len(coders))],
        read=_read_point(folder),
        write=one_of(writes, "folder", folder),
    )


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a folder `layers.{l}.mlp` for each layer into `folder`, which must exist.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    LIMITS.check(transcoder)
    cross_layer = isinstance(transcoder, CrossLayerTranscoder)
    for index, layer in enumerate(transcoder.layers):
        assert isinstance(layer.activation, ReLUTopK)
        targets = layer.decoder.shape[1] if cross_layer else 0
        config = {
            "activation": "topk",
            "k": layer.activation.k,
            "num_latents": len(layer.W_enc),
            "skip_connection": layer.W_skip is not None,
            "transcode": True,
            "n_targets": targets,
            "n_sources": index + 1 if cross_layer else 0,
            "coalesce_topk": "none",
            "d_in": transcoder.d_model,
        }
        member = folder / f"layers.{index}.mlp"
        member.mkdir()
        (member / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(plain(_tensors(layer, targets)), member / WEIGHTS)


def _tensors(layer: TranscoderLayer, targets: int) -> dict[str, Tensor]:
    """One layer's weights; its bias and skip are kept for its own output only."""
    rows = all_rows(layer.decoder)
    skip = {} if layer.W_skip is None else {"W_skip": layer.W_skip.T}
    found = {"encoder.weight": layer.W_enc, "encoder.bias": layer.b_enc}
    if targets == 0:
        return found | {"W_dec": rows[:, 0], "b_dec": layer.b_dec} | skip
    for j in range(targets):
        own = float(j == 0)
        found |= {f"W_decs.{j}": rows[:, j], f"b_decs.{j}": layer.b_dec * own}
        found |= {f"{key}s.{j}": value * own for key, value in skip.items()}
    return found


def _read_point(folder: Path) -> ReadPoint:
    """What the MLP reads, unless the run's configuration names other inputs."""
    path = folder / RUN
    names = read_json(path).get("hookpoints_in") if path.is_file() else None
    if not names:
        return ReadPoint.NORMED
    points = {placed(f"{name}.input", READ, "hookpoints_in", path)[1] for name in names}
    return one_of(points, "hookpoints_in", path)


@dataclass(frozen=True, eq=False)
class _Coder:
    """One hook point's files."""

    file: TensorFile
    k: int
    targets: int
    """Later layers it writes to, its own included; 0 is per-layer."""
    coalesce: str
    tied: bool
    normalised: bool

    @classmethod
    def open(cls, folder: Path) -> "_Coder":
        path = folder / CONFIG
        config = read_json(path)
        refuse(
            config,
            path,
            transcode=(True,),
            activation=("topk",),
            coalesce_topk=("none", "concat", "per-layer"),
            topk_coalesced=(False,),
            secondary_target_tied=(False,),
            divide_cross_layer=(False,),
        )
        if "transcode" not in config:
            raise ModelError(f"{path}: transcode is missing: a sparse autoencoder, no transcoder")
        if type(config.get("k")) is not int:
            raise ModelError(f"{path}: k is {config.get('k')!r}, expected a whole number")
        file = TensorFile.open(folder / WEIGHTS)
        targets = int(config.get("n_targets") or 0)
        file.only({*SINGLE, *(f"{name}.{j}" for name in LISTED for j in range(targets))})
        coder = cls(
            file,
            config["k"],
            targets,
            str(config.get("coalesce_topk", "none")),
            bool(config.get("per_source_tied", False)),
            bool(config.get("normalize_io", False)),
        )
        coder.check()
        return coder

    @property
    def features(self) -> int:
        """Features of this layer."""
        return self.file.shape("encoder.weight")[0]

    @property
    def d_model(self) -> int:
        """Width."""
        return self.file.shape("encoder.weight")[1]

    def check(self) -> None:
        """Refuse what no linear decoder can express, unless it is zero."""
        offsets = [key for key in self.file.shapes if key.startswith("post_enc")]
        far_skips = [f"W_skips.{j}" for j in range(1, self.targets)]
        for key in [*offsets, *far_skips]:
            if "scale" in key or key not in self.file.shapes:
                continue
            if self.file.tensor(key).any():
                raise ModelError(
                    f"{self.file.path}: {key} is not zero, a variant that is not supported"
                )

    def name(self, key: str, offset: int = 0) -> str:
        """Key of a weight that is listed by target where there are several."""
        listed = self.targets > 0 and f"{key}s.{offset}" in self.file.shapes
        return f"{key}s.{offset}" if listed else key

    def scale(self, end: str) -> Tensor:
        """Mean norm over √D at one end, (1)."""
        if not self.normalised:
            return torch.ones(1)
        return widened(self.file.tensor(f"{end}_norm")) / float(self.d_model) ** 0.5

    def by_feature(self, offset: int) -> Tensor | None:
        """Scale of each feature for the target `offset` layers above."""
        found = self.file.optional(self.name("post_enc_scale", offset))
        return None if found is None else widened(found)


@dataclass(frozen=True, eq=False)
class _Dictionary:
    """The coders of all layers: a layer's decoders may stand in another's file."""

    coders: list[_Coder]
    cross_layer: bool

    def layer(self, index: int, lazy: bool) -> TranscoderLayer:
        """One layer, scales folded in."""
        coder = self.coders[index]
        targets = range(index, len(self.coders) if self.cross_layer else index + 1)
        skip = coder.file.optional(coder.name("W_skip"))
        read, write = coder.scale("in"), coder.scale("out")
        return TranscoderLayer(
            W_enc=widened(coder.file.tensor("encoder.weight")) / read,
            b_enc=widened(coder.file.tensor("encoder.bias")),
            decoder=loaded(StackedDecoder([self.rows(index, target) for target in targets]), lazy),
            b_dec=self.bias(index) * write,
            activation=ReLUTopK(coder.k),
            W_skip=None if skip is None else (widened(skip).T * write / read).contiguous(),
        )

    def rows(self, source: int, target: int) -> RowSource:
        """What features of `source` write to `target`."""
        coder, at, offset = self.coders[source], self.coders[target], target - source
        if offset >= max(coder.targets, 1):
            return NoRows((coder.features, coder.d_model))
        by_target, by_feature = at.scale("out"), coder.by_feature(offset)
        if at.coalesce == "none":
            key = coder.name("W_dec", offset)
            if coder.targets > 1 and key == "W_dec" and not coder.tied:
                key = f"W_decs.{offset}"
            return StoredRows(coder.file, key, by_target=by_target, by_feature=by_feature)
        first = 0
        if at.coalesce == "per-layer":
            first = (source - min(self.sources(target))) * coder.features
        return StoredRows(
            at.file,
            "W_dec",
            first=first,
            count=coder.features,
            by_target=by_target,
            by_feature=by_feature,
        )

    def sources(self, target: int) -> Iterator[int]:
        """Layers that write to `target`."""
        return (
            source
            for source in range(target + 1)
            if target - source < max(self.coders[source].targets, 1)
        )

    def bias(self, target: int) -> Tensor:
        """Sum of the biases that sources keep for `target`; one where they are coalesced."""
        at = self.coders[target]
        if at.coalesce != "none":
            return widened(at.file.tensor("b_dec"))
        biases = [
            self.coders[source].file.tensor(self.coders[source].name("b_dec", target - source))
            for source in self.sources(target)
        ]
        return widened(torch.stack(biases)).sum(0)


FORMAT = Format("sparsify", recognise, load, save)
