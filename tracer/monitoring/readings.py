"""One pass over rows of tokens in which only what is watched is read, and no more is run.

The pass ends where the last of what is watched has been read: nothing above it is computed.
Gradients flow where torch records them, to what the embedding gave.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.hooks import (
    first_tensor,
    float64_experts,
    forward_hooks,
    forward_pre_hooks,
    on_last,
)
from replacement_models.recording import read_input
from replacement_models.replaced import Where, counted
from replacement_models.sites import ReadPoint, Site, Stage
from replacement_models.text.packing import FILL
from tracer.monitoring.watches import Watch, stacked


class _Enough(Exception):  # noqa: N818  no error: all that is asked for has been read
    pass


@dataclass(frozen=True, eq=False)
class Read:
    """Of a batch of rows, one number a watch and token."""

    values: Float[Tensor, "watches rows positions"]
    """Activation, sum of activations, or length along a direction; 0 where nothing counts."""
    reach: Float[Tensor, "watches rows positions"]
    """The same before the activation function, which has a gradient where a feature is silent;
    after it where a gate multiplies it."""
    counts: Bool[Tensor, "rows positions"]
    embedded: Tensor | None
    """What the embedding gave, for gradients."""


def read(
    model: ReplacementModel,
    rows: Int[Tensor, "rows positions"],
    watches: Sequence[Watch],
    skip_positions: int,
    gradients: bool = False,
) -> Read:
    """Read what is watched.

    Args:
        model: the model.
        rows: ids in rows of one length, FILL behind the shorter ones.
        watches: of this model.
        skip_positions: first positions of a row that do not count; nor do special tokens.
        gradients: let the embedding's output record them.
    """
    ids = rows.to(model.device)
    tokens = ids.clamp(min=0)
    counts = counted(model, tokens, Where(skip_positions=skip_positions)) & (ids != FILL)
    tap = _Tap(model, list(watches), tuple(ids.shape), gradients)
    run = torch.enable_grad() if gradients else torch.no_grad()
    with run, tap.listening(), float64_experts(model.host.model):
        with suppress(_Enough):
            model.host.model(input_ids=tokens, use_cache=False)
        values, reach = (tap.collected(one, counts) for one in (tap.values, tap.reach))
    return Read(values, reach, counts, tap.embedded)


@dataclass(eq=False)
class _Tap:
    """The hooks of one pass and what they have read."""

    model: ReplacementModel
    watches: list[Watch]
    shape: tuple[int, ...]
    """Rows and positions; experts may flatten them into one."""
    gradients: bool
    values: dict[int, Any] = field(default_factory=dict)
    reach: dict[int, Any] = field(default_factory=dict)
    embedded: Tensor | None = None
    left: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.directions = stacked(self.watches, self.model)
        self.layers: dict[int, list[tuple[int, int]]] = {}
        for number, watch in enumerate(self.watches):
            for layer, feature in watch.features:
                self.layers.setdefault(layer, []).append((number, feature))
        self.left |= {*self.layers, *self.directions}

    @contextmanager
    def listening(self) -> Iterator[None]:
        hooks: list[tuple[nn.Module, Any]] = [(self.model.host.embedding, self._begin)]
        before: list[tuple[nn.Module, Any]] = []
        for layer in self.layers:
            hooks += self._at_mlp(layer)
        for site in self.directions:
            module = self._module(site)
            ended = site.layer == len(self.model.host.blocks)
            calls = self.model.host.final_norm_calls if ended else 1
            before.append((module, on_last(calls, self._at_site(site))))
        with forward_hooks(hooks), forward_pre_hooks(before):
            yield

    def collected(self, found: dict[int, Any], counts: Tensor) -> Tensor:
        return torch.stack([found[number] * counts for number in range(len(self.watches))])

    def _begin(self, inputs: Any, output: Tensor) -> Tensor | None:
        if not self.gradients:
            return None
        self.embedded = output.detach().requires_grad_()
        return self.embedded

    def _at_mlp(self, layer: int) -> list[tuple[nn.Module, Any]]:
        """Listen to the MLP, and to the norm before it where the dictionary reads there."""
        block, where = self.model.host.blocks[layer], self.model.transcoder.read_at(layer)
        residual: list[Tensor] = []

        def at_mlp(inputs: tuple[Any, ...], _: Any) -> None:
            x = first_tensor(inputs)
            self._encode(layer, read_input(block, where, residual.pop() if residual else x, x))
            self._done(layer)

        hooks: list[tuple[nn.Module, Any]] = [(block.mlp, at_mlp)]
        if block.mlp_norm is not None and where is not ReadPoint.NORMED:
            keep = residual.append
            hooks.append((block.mlp_norm.module, lambda inputs, _: keep(first_tensor(inputs))))
        return hooks

    def _encode(self, layer: int, x: Tensor) -> None:
        hidden, active = self.model.transcoder.encode(layer, x)
        gated = self.model.transcoder.layers[layer].gate is not None
        for number, feature in self.layers[layer]:
            value = active[..., feature]
            reach = value if gated else hidden[..., feature]
            value, reach = (one.reshape(self.shape).to(self.model.device) for one in (value, reach))
            self.values[number] = self.values.get(number, 0) + value
            self.reach[number] = self.reach.get(number, 0) + reach

    def _module(self, site: Site) -> nn.Module:
        """What first reads the stream at a site."""
        host = self.model.host
        if site.stage is Stage.RESID_MID:
            norm = host.blocks[site.layer].mlp_norm
            return host.blocks[site.layer].mlp if norm is None else norm.module
        at_end = site.layer == len(host.blocks)
        return host.final_norm.module if at_end else host.blocks[site.layer].module

    def _at_site(self, site: Site) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
        numbers, vectors = self.directions[site]

        def at_site(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = first_tensor((*args, *kwargs.values())).to(vectors.device) @ vectors
            for column, number in enumerate(numbers):
                self.values[number] = self.reach[number] = found[..., column].reshape(self.shape)
            self._done(site)

        return at_site

    def _done(self, what: object) -> None:
        self.left.discard(what)
        if not self.left:
            raise _Enough
