"""CLT-Forge's dictionaries: `clt_cfg.json` beside `clt_weights.safetensors`, whole or sharded.

W_enc (L, D, F), b_enc (L, F), log_threshold (L, F); with `cross_layer_decoders` W_dec (pairs, F, D)
and b_dec (pairs, D), pairs being (source, target) in the order of an upper triangle, else (L, F, D)
and (L, D). Inputs were multiplied by estimated_norm_scaling_factor_in (L), outputs are divided by
…_out (L): folded in here. With `feature_sharding` the features are dealt out over
`rank{r}_clt_weights.safetensors`. They read what is normed but not weighted and write after a
post-norm, as CLT-Forge's own loader for circuit-tracer says.
"""

import json
from dataclasses import dataclass
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
from replacement_models.formats.storage.points import read_json, refuse
from replacement_models.formats.storage.rows import ShardedRows, StackedDecoder, StoredRows, widened
from replacement_models.formats.storage.tensors import TensorFile, all_rows, loaded
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

CONFIG, WEIGHTS = "clt_cfg.json", "clt_weights.safetensors"
SCALE_IN, SCALE_OUT = "estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out"
TENSORS = (
    *("W_enc", "b_enc", "W_dec", "b_dec", "log_threshold", SCALE_IN, SCALE_OUT),
    *("feature_count", "layer_mask", "l_idx", "k_idx"),
)


LIMITS = Limits(
    "CLT-Forge",
    (CrossLayerTranscoder, PerLayerTranscoder),
    (JumpReLU,),
    read=(ReadPoint.NORMED_UNWEIGHTED,),
    write=(WritePoint.POST_NORM,),
    uniform=True,
)


def recognise(folder: Path) -> bool:
    """Whether `folder` claims to hold this format."""
    return (folder / CONFIG).is_file()


def load(folder: Path, lazy: bool) -> Transcoder:
    """Read a dictionary.

    Args:
        folder: holds `clt_cfg.json`.
        lazy: leave decoder rows on disk.

    Raises:
        ModelError: a file or shard is missing or torn, or a variant is not supported.
    """
    config = read_json(folder / CONFIG)
    count = config.get("n_layers")
    if type(count) is not int or count < 1:
        raise ModelError(f"{folder / CONFIG}: n_layers is {count!r}, expected a count from 1 up")
    refuse(config, folder / CONFIG, cross_layer_decoders=(True, False))
    stored = _Stored.open(folder, config, count)
    kind = CrossLayerTranscoder if stored.cross_layer else PerLayerTranscoder
    return kind(
        [stored.layer(index, lazy) for index in range(count)],
        read=ReadPoint.NORMED_UNWEIGHTED,
        write=WritePoint.POST_NORM,
        model=str(config.get("model_name", "")),
    )


def save(transcoder: Transcoder, folder: Path) -> None:
    """Write a dictionary, scales folded in, into `folder`, which must exist.

    A decoder bias stands with its own layer's decoder; thresholds are stored as logarithms.

    Raises:
        ModelError: the format has no place for what the transcoder holds.
    """
    LIMITS.check(transcoder)
    layers, cross_layer = transcoder.layers, isinstance(transcoder, CrossLayerTranscoder)
    biases = []
    for layer in layers:
        beyond = layer.decoder.shape[1] - 1
        biases += [layer.b_dec[None], layer.b_dec.new_zeros(beyond, transcoder.d_model)]
    thresholds = [
        one.activation.threshold for one in layers if isinstance(one.activation, JumpReLU)
    ]
    weights = {
        "W_enc": torch.stack([layer.W_enc.T for layer in layers]),
        "b_enc": torch.stack([layer.b_enc for layer in layers]),
        "W_dec": torch.cat([all_rows(layer.decoder).transpose(0, 1) for layer in layers]),
        "b_dec": torch.cat(biases),
        "log_threshold": torch.stack(thresholds).log(),
        SCALE_IN: torch.ones(len(layers)),
        SCALE_OUT: torch.ones(len(layers)),
    }
    config = {
        "d_in": transcoder.d_model,
        "d_latent": transcoder.features,
        "n_layers": len(layers),
        "model_name": transcoder.model,
        "dtype": str(layers[0].W_enc.dtype).removeprefix("torch."),
        "cross_layer_decoders": cross_layer,
        "feature_sharding": False,
    }
    save_file(plain(weights), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


@dataclass(frozen=True, eq=False)
class _Stored:
    """The files of one dictionary and what is folded into its weights."""

    files: list[TensorFile]
    count: int
    cross_layer: bool
    scale_in: Tensor
    scale_out: Tensor

    @classmethod
    def open(cls, folder: Path, config: dict[str, Any], count: int) -> "_Stored":
        paths = [folder / WEIGHTS]
        if config.get("feature_sharding"):
            world = config.get("world_size", len(list(folder.glob(f"rank*_{WEIGHTS}"))))
            paths = [folder / f"rank{rank}_{WEIGHTS}" for rank in range(max(world, 1))]
        files = [TensorFile.open(path) for path in paths]
        cross_layer = bool(config.get("cross_layer_decoders", True))
        matrices = count * (count + 1) // 2 if cross_layer else count
        for file in files:
            file.only(TENSORS)
            if file.shape("W_dec")[0] != matrices or file.shape("W_enc")[0] != count:
                raise ModelError(
                    f"{file.path}: W_enc has shape {file.shape('W_enc')} and W_dec "
                    f"{file.shape('W_dec')}, expected {count} and {matrices} matrices"
                )
        scales = [widened(files[0].tensor(name)) for name in (SCALE_IN, SCALE_OUT)]
        return cls(files, count, cross_layer, *scales)

    def pair(self, source: int, target: int) -> int:
        """Place of a (source, target) pair among the decoders."""
        if not self.cross_layer:
            return source
        return source * self.count - source * (source - 1) // 2 + target - source

    def layer(self, index: int, lazy: bool) -> TranscoderLayer:
        """One layer, normalisation folded in."""
        targets = range(index, self.count if self.cross_layer else index + 1)
        rows = [
            ShardedRows(
                [
                    StoredRows(
                        file,
                        "W_dec",
                        at=self.pair(index, target),
                        by_target=1 / self.scale_out[target : target + 1],
                    )
                    for file in self.files
                ]
            )
            for target in targets
        ]
        encoder = torch.cat([file.part("W_enc", index).T for file in self.files])
        threshold = torch.cat([file.part("log_threshold", index) for file in self.files])
        return TranscoderLayer(
            W_enc=widened(encoder) * self.scale_in[index],
            b_enc=widened(torch.cat([file.part("b_enc", index) for file in self.files])),
            decoder=loaded(StackedDecoder(rows), lazy),
            b_dec=self._bias(index) / self.scale_out[index],
            activation=JumpReLU(widened(threshold).exp()),
        )

    def _bias(self, target: int) -> Tensor:
        """Sum of the biases of every decoder that writes to a layer; shards share them."""
        sources = range(target + 1) if self.cross_layer else [target]
        biases = [self.files[0].part("b_dec", self.pair(source, target)) for source in sources]
        return widened(torch.stack(biases)).sum(0)


FORMAT = Format("clt-forge", recognise, load, save)
