"""Run a host with its MLPs replaced by what a dictionary makes of what they read.

This is the replacement model of Ameisen et al. 2025, "Circuit Tracing", section "Building an
interpretable replacement model": no error is added, attention and norms are recomputed, and every
layer reads what the layers below made of it. Only replaced layers contribute features, unless
others are named as writers, and only their outputs change: what a cross-layer feature writes to a
layer that stays the host's own is dropped, for that layer's MLP answers the change itself. A layer
without a dictionary is never replaced. The host's own modules do the arithmetic, under hooks that
are always removed.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from replacement_models.errors import ModelError
from replacement_models.hooks import (
    first_tensor,
    float64_experts,
    forward_hooks,
    forward_pre_hooks,
    in_rows,
    replaced_first,
)
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.recording import read_input, write_hooks
from replacement_models.replacement import ReplacementModel
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder


@dataclass(frozen=True)
class Where:
    """Which MLP outputs are replaced."""

    layers: Collection[int] | None = None
    """None: all that have a dictionary."""
    writers: Collection[int] = ()
    """Layers whose features write too although their own output stays: to replace one layer by what
    a cross-layer dictionary makes of the model's own pass takes all layers below it."""
    positions: Collection[int] | None = None
    """None: all that are not kept."""
    skip_positions: int = 1
    """First positions that are kept, as a graph's `skip_positions`."""
    keep_tokens: Collection[int] | None = None
    """Ids of tokens that are kept; None: the model's special ones (`special_tokens`)."""


ALL = Where()
"""Every layer, at every position but the first and the special tokens'."""


@dataclass(frozen=True, eq=False)
class ReplacedLayer:
    """One layer in one pass, at all positions, those that are kept too."""

    inputs: Float[Tensor, "rows positions d_model"]
    """What the dictionary read."""
    activations: Float[Tensor, "rows positions features"]
    output: Float[Tensor, "rows positions d_model"]
    """What the MLP made of what it read in this pass."""
    reconstruction: Float[Tensor, "rows positions d_model"]
    """What the dictionaries of all replaced layers made of it."""
    counted: Bool[Tensor, "rows positions"]
    """Positions that are not kept, whether `positions` names them or not."""

    __repr__ = one_line


@dataclass(frozen=True, eq=False)
class Replaced:
    """One pass of the replacement model."""

    logits: Float[Tensor, "rows positions vocabulary"]
    """As the host shows them, after its soft cap."""
    layers: dict[int, ReplacedLayer]
    """By replaced layer, from the bottom."""

    __repr__ = one_line


@dataclass
class Writes:
    """What features seen so far write to the outputs of their own and later layers."""

    transcoder: Transcoder
    layers: Collection[int] | None = None
    """Layers whose output is asked for; None: all."""
    pending: dict[int, Tensor] = field(default_factory=dict)

    def read(
        self, layer: int, inputs: Float[Tensor, "rows positions d_model"]
    ) -> Float[Tensor, "rows positions features"]:
        """Let all features of one layer write.

        Args:
            layer: theirs.
            inputs: what they read.

        Returns:
            Their activations.
        """
        active = self.transcoder.encode(layer, inputs)[1]
        used = active.flatten(0, 1).any(0).nonzero()[:, 0]
        self.add(layer, used, active[..., used])
        return active

    def add(
        self,
        layer: int,
        features: Int[Tensor, " some"],
        amount: Float[Tensor, "*batch some"],
    ) -> None:
        """Let some features of one layer write.

        Args:
            layer: theirs.
            features: their numbers.
            amount: their activations, in that order.
        """
        rows = self.transcoder.decoder_rows(layer, features)
        for slot, target in enumerate(self.transcoder.targets(layer)):
            if self.layers is None or target in self.layers:
                device = self.transcoder.layers[target].b_dec.device
                write = (amount @ rows[:, slot]).to(device)
                self.pending[target] = self.pending.get(target, 0) + write

    def output(
        self, layer: int, inputs: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The reconstruction of one layer, once all features that write to it have been added.

        Args:
            layer: whose output.
            inputs: what its dictionary read, for the linear skip.

        Returns:
            (..., D): writes, bias and skip; the bias alone (D) where nothing writes.
        """
        total = self.pending.get(layer, 0) + self.transcoder.layers[layer].b_dec
        skip = self.transcoder.skip(layer)
        return total if skip is None else total + inputs @ skip


Watch = Callable[[int, ReplacedLayer], None]
"""What is told of every replaced layer as a pass reaches it."""


class StandIn(Protocol):
    """Stands in as a model's transcoder does: a dictionary that is still in training."""

    @property
    def present(self) -> Sequence[int]:
        """Layers that it has."""

    def read_at(self, layer: int) -> ReadPoint:
        """Where one layer reads."""

    def write_at(self, layer: int) -> WritePoint:
        """What stands for one layer's MLP."""

    def begin(self, counted: Bool[Tensor, "rows positions"]) -> None:
        """A pass begins, with these positions that are not kept."""

    def read(self, layer: int, inputs: Float[Tensor, "rows positions d_model"]) -> Tensor:
        """As `Writes.read`."""

    def output(
        self, layer: int, inputs: Float[Tensor, "rows positions d_model"]
    ) -> Float[Tensor, "rows positions d_model"]:
        """As `Writes.output`, at positions that are not kept."""


@contextmanager
def replaced(
    model: ReplacementModel,
    where: Where = ALL,
    watch: Watch | None = None,
    stand_in: StandIn | None = None,
) -> Iterator[None]:
    """Let dictionaries stand in for MLPs in every forward pass of the host inside the block.

    Passes take whole prompts, in rows of one length, without a cache of keys and values. Gradients
    flow where torch records them. Calls in other threads wait until the block ends.

    Args:
        model: its host is hooked; what it computes outside the block is unchanged.
        where: which MLP outputs are replaced.
        watch: called with every replaced layer and what happened there, in order.
        stand_in: what stands in; None is the model's transcoder.

    Raises:
        ModelError: no such layer or position.
    """
    standing = model.transcoder if stand_in is None else stand_in
    layers = chosen_layers(standing.present, where)
    writers = chosen_layers(standing.present, replace(where, layers=where.writers))
    going = _Pass(model, where, frozenset(layers), watch, standing)
    hooks = [hook for layer in sorted({*layers, *writers}) for hook in going.hooks(layer)]
    begin = [(model.host.embedding, going.begin)] if layers else []
    with (
        one_call(),
        forward_pre_hooks(begin),
        forward_hooks(hooks),
        float64_experts(model.host.model),
    ):
        yield


@one_call()
@torch.no_grad()
def run(
    model: ReplacementModel, tokens: Int[Tensor, "rows positions"], where: Where = ALL
) -> Replaced:
    """One pass of the replacement model.

    With `positions=()` nothing is replaced, and what the dictionaries would have made of the
    model's own pass is found all the same.

    Args:
        model: the model.
        tokens: ids, in rows of one length.
        where: which MLP outputs are replaced.

    Returns:
        Logits (rows, positions, vocabulary), and of every replaced layer what it read, its
        activations, and both outputs.

    Raises:
        ModelError: no such layer or position, or tokens are not rows of ids.
    """
    found: dict[int, ReplacedLayer] = {}
    with replaced(model, where, found.__setitem__):
        return Replaced(logits_of(model, tokens), found)


def special_tokens(model: ReplacementModel) -> frozenset[int]:
    """Ids that are no text: the tokenizer's special ones, without one the configuration's.

    Returns:
        Ids; of a configuration those of beginning, end and padding.
    """
    if model.tokenizer is not None:
        return frozenset(model.tokenizer.all_special_ids)
    host: Any = model.host.model
    config = host.config.get_text_config()
    named = (getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
    listed = (ids if isinstance(ids, list) else [ids] for ids in named if ids is not None)
    return frozenset(token for ids in listed for token in ids)


@dataclass
class _Pass:
    """What the hooks of one forward pass share; `begin` makes it anew for the next."""

    model: ReplacementModel
    where: Where
    layers: frozenset[int]
    watch: Watch | None
    standing: Transcoder | StandIn
    residual: dict[int, Tensor] = field(default_factory=dict)
    read: dict[int, Tensor] = field(default_factory=dict)
    """Inputs of each layer's norm and MLP, from where they are seen to where they are used."""
    counted: Tensor = field(init=False)
    chosen: Tensor = field(init=False)
    writes: Writes | StandIn = field(init=False)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At the embedding: which tokens there are says which positions are kept."""
        tokens = first_tensor((*args, *kwargs.values()))
        self.counted = counted(self.model, tokens, self.where)
        self.chosen = self.counted & _named(tokens, self.where)[None]
        if isinstance(self.standing, Transcoder):
            self.writes = Writes(self.standing, self.layers)
        else:
            self.standing.begin(self.counted)
            self.writes = self.standing

    def hooks(self, layer: int) -> list[tuple[nn.Module, Any]]:
        """Those of one layer: what its MLP reads, before and after the norm, and its output."""
        block, standing = self.model.host.blocks[layer], self.standing

        def keep(into: dict[int, Tensor]) -> Callable[[Any, Any], None]:
            return lambda inputs, _: into.__setitem__(
                layer, in_rows(first_tensor(inputs), len(self.counted))
            )

        hooks: list[tuple[nn.Module, Any]] = [(block.mlp, keep(self.read))]
        if block.mlp_norm is not None and standing.read_at(layer) is not ReadPoint.NORMED:
            hooks.append((block.mlp_norm.module, keep(self.residual)))
        write = standing.write_at(layer)
        return [*hooks, *write_hooks(block, write, lambda _, out: self._replace(layer, out))]

    def _replace(self, layer: int, output: Any) -> Any:
        read = self.read.pop(layer)
        where, residual = self.standing.read_at(layer), self.residual.pop(layer, read)
        x = read_input(self.model.host.blocks[layer], where, residual, read)
        active = self.writes.read(layer, x)
        if layer not in self.layers:
            return output
        guess = self.writes.output(layer, x)
        first = output[0] if isinstance(output, tuple) else output
        own = first.reshape(guess.shape)  # experts may flatten rows and positions into one
        if self.watch is not None:
            counted = self.counted.to(own.device)
            self.watch(layer, ReplacedLayer(x, active, own, guess, counted))
        mixed = torch.where(self.chosen[..., None].to(own.device), guess, own)
        return replaced_first(output, mixed.reshape(first.shape))


def counted(
    model: ReplacementModel, tokens: Int[Tensor, "rows positions"], where: Where = ALL
) -> Bool[Tensor, "rows positions"]:
    """Which positions are not kept: neither among the first ones nor special tokens.

    Args:
        model: names its special tokens.
        tokens: ids, in rows of one length.
        where: says what is kept.

    Returns:
        True where a position takes part.
    """
    keep = special_tokens(model) if where.keep_tokens is None else where.keep_tokens
    ids = torch.tensor(sorted(keep), dtype=tokens.dtype, device=tokens.device)
    found = ~torch.isin(tokens, ids)
    found[:, : where.skip_positions] = False
    return found


def logits_of(
    model: ReplacementModel, tokens: Int[Tensor, "rows positions"]
) -> Float[Tensor, "rows positions vocabulary"]:
    """What the host shows on whole prompts, after its soft cap, under whatever hooks there are.

    Raises:
        ModelError: tokens are not rows of ids of the vocabulary.
    """
    ids, last = tokens.to(model.device), model.host.vocabulary - 1
    if ids.ndim != 2 or not ids.numel():
        raise ModelError(f"tokens have shape {tuple(ids.shape)}, expected (rows, positions)")
    if int(ids.min()) < 0 or int(ids.max()) > last:
        raise ModelError(f"tokens {int(ids.min())} to {int(ids.max())} are not all in 0..{last}")
    logits: Tensor = model.host.model(input_ids=ids, use_cache=False).logits
    return logits.to(model.device)


def chosen_layers(there: Sequence[int], where: Where) -> list[int]:
    """The layers to replace, in order.

    Args:
        there: layers that have a dictionary.
        where: which are named.

    Raises:
        ModelError: a layer has no dictionary.
    """
    wanted = there if where.layers is None else where.layers
    wrong = [layer for layer in wanted if layer not in there]
    if wrong:
        raise ModelError(
            f"replaced: layer {wrong[0]} has no dictionary; those that have one are "
            f"{', '.join(map(str, there))}"
        )
    return sorted(set(wanted))


def _named(tokens: Int[Tensor, "rows positions"], where: Where) -> Bool[Tensor, " positions"]:
    """The positions that `where` names."""
    count = tokens.shape[1]
    if where.positions is None:
        return torch.ones(count, dtype=torch.bool, device=tokens.device)
    wrong = [position for position in where.positions if not 0 <= position < count]
    if wrong:
        raise ModelError(f"replaced: position {wrong[0]} is not in 0..{count - 1}")
    named = torch.zeros(count, dtype=torch.bool, device=tokens.device)
    named[list(where.positions)] = True
    return named
