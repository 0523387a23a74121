"""What a model's layers read and write on rows of tokens, taken by hooks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from replacement_models.hooks import (
    first_of,
    first_tensor,
    float64_experts,
    forward_hooks,
    forward_pre_hooks,
)
from replacement_models.host import Block
from replacement_models.recording import read_input, write_hooks
from replacement_models.replacement import ReplacementModel
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.training.config import TrainConfig
from replacement_models.training.trainee import Batch


class _AllSeenError(Exception):
    """Ends a pass of which everything that is wanted has been seen."""


@dataclass(frozen=True, eq=False)
class Harvester:
    """Where to listen in a model, and which positions count."""

    model: ReplacementModel
    config: TrainConfig
    layers: tuple[int, ...]
    special: frozenset[int]

    @torch.no_grad()
    def __call__(self, rows: Int[np.ndarray, "rows context"]) -> Batch:
        """Activations of the tokens that count, row by row.

        Args:
            rows: ids, negative where a row holds none.

        Returns:
            Inputs and outputs (tokens, D) of every layer, float32.
        """
        ids = torch.from_numpy(rows.astype(np.int64)).to(self.model.device)
        seen = _Seen(self.layers[-1])
        hooks = [hook for layer in self.layers for hook in self._hooks(layer, seen)]
        entering = [hook for layer in self.layers for hook in self._entering(layer, seen)]
        host: Any = self.model.host.model
        body = getattr(host, "base_model", host)
        try:
            with forward_pre_hooks(entering), forward_hooks(hooks), float64_experts(host):
                body(input_ids=ids.clamp(min=0), use_cache=False)
        except _AllSeenError:
            pass
        keep = self.counted(ids)
        chosen = [
            [self._flat(part[layer], keep) for layer in self.layers]
            for part in (seen.inputs, seen.outputs)
        ]
        return Batch(*chosen)

    def counted(self, ids: Int[Tensor, "rows context"]) -> Bool[Tensor, "rows context"]:
        """Which positions take part: text, but for the first positions and special tokens."""
        special = torch.tensor(sorted(self.special), dtype=ids.dtype, device=ids.device)
        found = (ids >= 0) & ~torch.isin(ids, special)
        found[:, : self.config.data.skip_positions] = False
        return found

    def _flat(self, data: Tensor, keep: Tensor) -> Tensor:
        return data.reshape(*keep.shape, -1)[keep].float()

    def _hooks(self, layer: int, seen: "_Seen") -> list[tuple[nn.Module, Any]]:
        block, chosen = self.model.host.blocks[layer], self.config.dictionary
        if chosen.kind == "sae":
            return _stage_hooks(block, chosen.site, layer, seen)
        read = ReadPoint(chosen.read)
        hooks: list[tuple[nn.Module, Any]] = [
            (block.mlp, lambda args, _: seen.mlp_input.__setitem__(layer, first_tensor(args)))
        ]
        if block.mlp_norm is not None and read is not ReadPoint.NORMED:
            norm = block.mlp_norm.module
            hooks.append(
                (norm, lambda args, _: seen.residual.__setitem__(layer, first_tensor(args)))
            )

        def finish(_: Any, output: Any) -> None:
            own = seen.mlp_input[layer]
            inputs = read_input(block, read, seen.residual.get(layer, own), own)
            seen.take(layer, inputs, first_of(output))

        return [*hooks, *write_hooks(block, WritePoint(chosen.write), finish)]

    def _entering(self, layer: int, seen: "_Seen") -> list[tuple[nn.Module, Any]]:
        """The stream entering a block is known before its module has run."""
        chosen = self.config.dictionary
        if chosen.kind != "sae" or chosen.site != "resid_pre":
            return []
        block = self.model.host.blocks[layer]

        def take(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = first_tensor((*args, *kwargs.values()))
            seen.take(layer, stream, stream)

        return [(block.module, take)]


@dataclass
class _Seen:
    last: int
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    mlp_input: dict[int, Tensor] = field(default_factory=dict)
    residual: dict[int, Tensor] = field(default_factory=dict)

    def take(self, layer: int, inputs: Tensor, output: Tensor) -> None:
        """Keep both; end the pass after the uppermost layer."""
        self.inputs[layer], self.outputs[layer] = inputs, output
        if layer == self.last:
            raise _AllSeenError


def _stage_hooks(block: Block, site: str, layer: int, seen: _Seen) -> list[tuple[nn.Module, Any]]:
    """One stage of a block, read and written."""
    if site == "resid_pre":
        return []
    if site == "resid_mid":
        assert block.mlp_norm is not None

        def entering(args: Any, _: Any) -> None:
            seen.take(layer, first_tensor(args), first_tensor(args))

        return [(block.mlp_norm.module, entering)]
    post = block.attention_post_norm
    module = block.attention_end if post is None or post.fixed else post.module

    def finish(_: Any, output: Any) -> None:
        seen.take(layer, first_of(output), first_of(output))

    if site == "mlp_out":
        return write_hooks(block, WritePoint.POST_NORM, finish)
    return [(module, finish)]


def joined(batches: Sequence[Batch]) -> Batch:
    """Tokens of several, one after another."""
    return Batch(
        [torch.cat(parts) for parts in zip(*(one.inputs for one in batches), strict=True)],
        [torch.cat(parts) for parts in zip(*(one.outputs for one in batches), strict=True)],
    )
