"""Queries and keys of the model's own attention, as affine functions of what attention reads.

The model's module is run as far as its scores: projections, norms on queries and keys, rotary
positions are its own, whatever the family does there. Only the denominators of norms on queries
and keys are held, which makes the whole affine.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.hooks import (
    eager_attention,
    first_tensor,
    forward_hooks,
    forward_pre_hooks,
)
from replacement_models.host import Block, Norm
from replacement_models.hosts.norms import norm_of, shifted_rms_norm
from tracer.errors import TraceError
from tracer.nothing_aside import nothing_aside

INTERFACE = "eager_attention_forward"
"""Function of a family's module through which its attention goes."""
METHODS = ("_attn", "_upcast_and_reordered_attn")
"""Methods that older families, and GPT-2 with upcasting, have instead."""
MASKED = -1e30
"""Entries of an additive mask below which a key is hidden."""
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class _ScoresReachedError(Exception):
    """Ends a forward pass where queries meet keys."""

    def __init__(self, *found: Any, **options: Any) -> None:
        super().__init__()
        self.found, self.options = found, options


@dataclass(frozen=True, eq=False)
class Scores:
    """One layer's queries, keys, and what becomes of their products; H heads, K key heads."""

    queries: Float[Tensor, "heads positions d_head"]
    keys: Float[Tensor, "kv_heads positions d_head"]
    scaling: float
    cap: float | None
    """Soft cap c: scores are c·tanh(score / c)."""
    sinks: Float[Tensor, " heads"] | None
    """A score a head that takes part of the attention and reads nothing."""
    visible: Bool[Tensor, "positions positions"]
    """Which keys a query may see."""

    def key_head(self, head: int) -> int:
        """The key-value head that a head reads."""
        return head // (len(self.queries) // len(self.keys))

    def raw(self, head: int) -> Float[Tensor, "queries keys"]:
        """Scores of one head before the cap."""
        return self.scaling * self.queries[head] @ self.keys[self.key_head(head)].T

    def every(self) -> Float[Tensor, "heads queries keys"]:
        """Scores of all heads before the cap."""
        keys = self.keys.repeat_interleave(len(self.queries) // len(self.keys), 0)
        return self.scaling * self.queries @ keys.transpose(1, 2)

    def capped(self, raw: Tensor) -> Tensor:
        """Scores after the cap."""
        return raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)

    def pattern(
        self, raw: Float[Tensor, "heads queries keys"], heads: Sequence[int]
    ) -> Float[Tensor, "heads queries keys"]:
        """The attention pattern that scores before the cap make."""
        scores = self.capped(raw).masked_fill(~self.visible, -torch.inf)
        if self.sinks is None:
            return scores.softmax(-1)
        sink = self.sinks[list(heads), None, None].expand(*scores.shape[:2], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


@dataclass(frozen=True, eq=False)
class QueryKeyMap:
    """One layer's attention as far as its scores, at what it was given on one prompt."""

    model: nn.Module
    block: Block
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    norms: Sequence[Norm]
    """On queries and keys."""
    residual: Float[Tensor, "positions d_model"]
    """The stream entering the layer."""
    scale: Float[Tensor, "positions 1"]
    """Denominators of the norm in front of attention."""

    @property
    def hidden(self) -> Float[Tensor, "positions d_model"]:
        """What attention reads."""
        norm = self.block.attention_norm
        return self.residual if norm is None else norm.frozen(self.residual, self.scale)

    def scores(self, hidden: Tensor | None = None, live: bool = False) -> "Reached":
        """Run the module on what it reads, or on something else with the same denominators.

        Args:
            hidden: (positions, d_model) to read instead.
            live: let gradients through the denominators of norms on queries and keys.
        """
        held: dict[nn.Module, Tensor] = {}
        with torch.enable_grad():
            own = self.hidden.detach().requires_grad_()
            found = self._run(own, held, keep=True, live=live)
            if hidden is not None:
                found = self._run(hidden, held, keep=False, live=False)
        return Reached(own, found)

    def _run(self, hidden: Tensor, held: dict[nn.Module, Tensor], keep: bool, live: bool) -> Scores:
        hooks = [(norm.module, _holding(norm, held, keep, live)) for norm in self.norms]
        args, kwargs = with_hidden(self.args, self.kwargs, hidden[None])
        with eager_attention(self.model), forward_hooks(hooks), _stopped(self.block.attention):
            try:
                self.block.attention(*args, **kwargs)
            except _ScoresReachedError as reached:
                return _scores(self.block.attention, reached, len(hidden))
        raise TraceError(
            f"{type(self.block.attention).__name__} forms its scores in a way that tracer does "
            "not know; its attention cannot be explained"
        )


@dataclass(frozen=True, eq=False)
class Reached:
    """Scores with the graph that leads to them, for pulling gradients back."""

    read: Float[Tensor, "positions d_model"]
    scores: Scores

    def pulled(
        self,
        queries: Float[Tensor, "rows heads positions d_head"] | None,
        keys: Float[Tensor, "rows kv_heads positions d_head"] | None,
    ) -> Float[Tensor, "rows positions d_model"]:
        """Gradients of queries and keys pulled back to what attention read."""
        pairs = ((self.scores.queries, queries), (self.scores.keys, keys))
        outputs, given = zip(*((out, grad) for out, grad in pairs if grad is not None), strict=True)
        [found] = torch.autograd.grad(
            outputs, self.read, given, retain_graph=True, is_grads_batched=True
        )
        return found


def query_key_maps(
    model: ReplacementModel,
    tokens: Sequence[int],
    layers: Sequence[int],
    residuals: Sequence[Tensor],
    scales: Sequence[Tensor],
) -> dict[int, QueryKeyMap]:
    """Attention of some layers on a prompt, from one forward pass of the model.

    Args:
        model: the model.
        tokens: the prompt.
        layers: which.
        residuals: the stream entering each layer of the model.
        scales: denominators of the norm in front of each layer's attention.
    """
    for layer in layers:
        check_scored(model, layer)
    seen: dict[int, Inputs] = {}

    def keep(layer: int) -> Any:
        def kept(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[layer] = args, kwargs

        return kept

    blocks = model.host.blocks
    taps = [(blocks[layer].attention, keep(layer)) for layer in layers]
    with eager_attention(model.host.model), forward_pre_hooks(taps):
        model.host.run(tokens, patterns=False, last_logits=True)
    return {
        layer: QueryKeyMap(
            model.host.model,
            blocks[layer],
            *seen[layer],
            norms=norms_inside(blocks[layer].attention),
            residual=residuals[layer],
            scale=scales[layer],
        )
        for layer in layers
    }


def check_scored(model: ReplacementModel, layer: int) -> None:
    """Refuse a layer whose pattern comes from no scores.

    Raises:
        TraceError: a kernel makes its pattern.
    """
    if model.host.blocks[layer].by_kernel:
        raise TraceError(
            f"layer {layer} of this {model.host.family} model has no softmax attention: its "
            "pattern comes from gates and a recurrence, not from scores of queries and keys"
        )


def check_bare(model: ReplacementModel, layer: int) -> None:
    """Refuse a layer whose heads are more than their weights.

    Raises:
        TraceError: there are factors or taps around its pattern, other ones for every prompt.
    """
    nothing_aside(model, "what heads do by their weights alone")
    block = model.host.blocks[layer]
    if block.plain:
        return
    kind = (
        "a linear-attention, state-space or convolution layer" if block.by_kernel else "attention"
    )
    raise TraceError(
        f"layer {layer} of this {model.host.family} model is {kind} with gates, factors or a "
        "convolution around its pattern, which depend on the prompt: its heads cannot be told by "
        "their weights alone; the loadings of a traced prompt hold them"
    )


def norms_inside(attention: nn.Module) -> list[Norm]:
    """Norms on queries and keys of an attention module.

    Raises:
        TraceError: one computes something else than its weights say.
    """
    found = []
    for module in attention.modules():
        weight = getattr(module, "weight", None)
        if "Norm" not in type(module).__name__ or not isinstance(weight, Tensor):
            continue
        x = torch.linspace(-1, 2, weight.numel()).to(weight).view_as(weight)
        made = module(x[(None,) * 2]).squeeze()
        for norm in (norm_of(module), shifted_rms_norm(module)):
            if torch.allclose(made, norm.frozen(x, norm.scale(x)), rtol=1e-2, atol=1e-2):
                found.append(norm)
                break
        else:
            raise TraceError(
                f"{type(module).__name__} inside {type(attention).__name__} is a norm that tracer "
                "does not know; its attention cannot be explained"
            )
    return found


def _holding(norm: Norm, held: dict[nn.Module, Tensor], keep: bool, live: bool) -> Any:
    def hold(inputs: Any, output: Tensor) -> Tensor:
        x = first_tensor(inputs)
        if keep:
            scale = norm.scale(x)
            held[norm.module] = scale.detach()
            return norm.frozen(x, scale if live else held[norm.module])
        return norm.frozen(x, held[norm.module])

    return hold


def with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Inputs:
    """A module's inputs with the hidden states among them replaced."""
    if args and isinstance(args[0], Tensor):
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


@contextmanager
def _stopped(attention: nn.Module) -> Iterator[None]:
    """While entered, attention raises what it is about to multiply."""

    def stop(*found: Any, **options: Any) -> None:
        raise _ScoresReachedError(*found, **options)

    def through_interface(module: nn.Module, *found: Any, **options: Any) -> None:
        stop(*found, **options)

    with ExitStack() as stack:
        for place in attention.modules():
            for name in METHODS:
                if hasattr(place, name):
                    setattr(place, name, stop)
                    stack.callback(delattr, place, name)
            family = sys.modules[type(place).__module__]
            if hasattr(family, INTERFACE) and getattr(family, INTERFACE) is not through_interface:
                stack.callback(setattr, family, INTERFACE, getattr(family, INTERFACE))
                setattr(family, INTERFACE, through_interface)
        yield


def _scores(attention: nn.Module, reached: _ScoresReachedError, positions: int) -> Scores:
    query, key, _, *rest = reached.found
    mask = rest[0] if rest else reached.options.get("attention_mask")
    options, inner = reached.options, _inner(attention)
    sinks = options.get("s_aux", getattr(inner, "sinks", None))
    return Scores(
        queries=query[0],
        keys=key[0],
        scaling=_scaling(inner, options, query.shape[-1]),
        cap=options.get("softcap"),
        sinks=None if sinks is None else sinks.detach().to(query.dtype),
        visible=_visible(inner, mask, positions, query.device),
    )


def _inner(attention: nn.Module) -> Any:
    """GPT-Neo wraps its attention once more."""
    return getattr(attention, "attention", attention)


def _scaling(attention: Any, options: dict[str, Any], d_head: int) -> float:
    if "scaling" in options:
        given = options["scaling"]
        return float(d_head**-0.5 if given is None else given)
    if hasattr(attention, "scale_attn"):  # GPT-J divides
        return float(1 / attention.scale_attn)
    return float(getattr(attention, "scaling", 1.0))  # GPT-Neo has none


def _visible(
    attention: Any, mask: Tensor | None, positions: int, device: torch.device
) -> Bool[Tensor, "positions positions"]:
    seen = torch.ones(positions, positions, dtype=torch.bool, device=device).tril()
    if isinstance(mask, Tensor):
        allowed = mask if mask.dtype == torch.bool else mask > MASKED
        seen = seen & allowed.expand(1, 1, positions, positions)[0, 0]
    own = getattr(attention, "bias", None)
    if isinstance(own, Tensor) and own.dtype == torch.bool and own.ndim == 4:  # GPT-Neo's window
        seen = seen & own[0, 0, :positions, :positions]
    return seen
