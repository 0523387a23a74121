"""Run a host with what a sparse autoencoder reads replaced by its reconstruction.

An autoencoder may read the stream before or after attention, or what attention or the MLP adds. The
stream between attention and MLP is changed by changing what attention adds, so that the MLP and
what passes it by both see the reconstruction.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.hooks import (
    first_of,
    first_tensor,
    float64_experts,
    forward_hooks,
    forward_pre_hooks,
    replaced_first,
)
from replacement_models.host import Block
from replacement_models.process import one_call
from replacement_models.recording import write_hooks
from replacement_models.replaced import ReplacedLayer, Watch, Where, counted
from replacement_models.sites import Stage, WritePoint
from replacement_models.transcoder import Transcoder
from tracer.errors import TraceError


@contextmanager
def spliced(
    model: ReplacementModel,
    autoencoder: Transcoder,
    where: Where,
    layers: Collection[int] = (),
    watch: Watch | None = None,
) -> Iterator[None]:
    """Let reconstructions stand in for what autoencoders read, inside the block.

    Args:
        model: its host is hooked.
        autoencoder: of the host's layers.
        where: which positions are kept.
        layers: those replaced.
        watch: called with every layer that has an autoencoder, replaced or not, in order.

    Raises:
        TraceError: an autoencoder reads between attention and MLP of a block without such a place.
    """
    going = _Pass(model, autoencoder, where, frozenset(layers), watch)
    hooked = autoencoder.present if watch else sorted(going.layers)
    with ExitStack() as stack:
        stack.enter_context(one_call())
        begin = [(model.host.embedding, going.begin)]
        stack.enter_context(forward_pre_hooks(begin))
        stack.enter_context(float64_experts(model.host.model))
        for layer in hooked:
            going.attach(layer, stack)
        yield


@dataclass
class _Pass:
    model: ReplacementModel
    autoencoder: Transcoder
    where: Where
    layers: frozenset[int]
    watch: Watch | None
    entered: dict[int, Tensor] = field(default_factory=dict)
    """The stream entering each block whose own stream is read after attention."""
    counted: Tensor = field(init=False)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At the embedding: which tokens there are says which positions are kept."""
        self.counted = counted(self.model, first_tensor((*args, *kwargs.values())), self.where)

    def attach(self, layer: int, stack: ExitStack) -> None:
        """Hooks of one layer."""
        block = self.model.host.blocks[layer]
        stage = stage_of(self.autoencoder, layer)
        if stage is Stage.RESID_PRE:
            hook = self._entering(layer)
            handle = block.module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
            return
        if stage is Stage.RESID_MID:
            if block.parallel or block.aside:
                raise TraceError(
                    f"the autoencoder of layer {layer} reads resid_mid, but attention and MLP of "
                    f"{self.model.name} {_no_stream(block)}: no stream lies between"
                )
            stack.enter_context(forward_pre_hooks([(block.module, self._keep(layer))]))
            stack.enter_context(forward_hooks([(added_by_attention(block), self._middle(layer))]))
            return
        hooks: list[tuple[nn.Module, Any]] = [(added_by_attention(block), self._written(layer))]
        if stage is Stage.MLP_OUT:
            hooks = write_hooks(block, WritePoint.POST_NORM, self._written(layer))
        stack.enter_context(forward_hooks(hooks))

    def _keep(self, layer: int) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
        return lambda args, kwargs: self.entered.__setitem__(
            layer, first_tensor((*args, *kwargs.values()))
        )

    def _entering(self, layer: int) -> Callable[..., Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            stream = first_tensor((*args, *kwargs.values()))
            new = self._mixed(layer, stream)
            swapped = [new if value is stream else value for value in args]
            named = {key: new if value is stream else value for key, value in kwargs.items()}
            return tuple(swapped), named

        return enter

    def _middle(self, layer: int) -> Callable[[Any, Any], Any]:
        block = self.model.host.blocks[layer]

        def middle(_: Any, output: Any) -> Any:
            before, post = self.entered.pop(layer), block.attention_post_norm
            added = first_of(output)
            if post is None or not post.fixed:
                return replaced_first(output, self._mixed(layer, before + added) - before)
            added = post.frozen(added, post.scale(added))
            new = self._mixed(layer, before + added) - before
            bias = 0 if post.bias is None else post.bias
            return replaced_first(output, (new - bias) / post.weight)

        return middle

    def _written(self, layer: int) -> Callable[[Any, Any], Any]:
        return lambda _, output: replaced_first(output, self._mixed(layer, first_of(output)))

    def _mixed(self, layer: int, value: Tensor) -> Tensor:
        """The reconstruction where a position counts, what was there elsewhere."""
        shaped = value.reshape(*self.counted.shape, -1)
        weights = self.autoencoder.layers[layer]
        active = self.autoencoder.encode(layer, shaped)[1]
        used = active.flatten(0, 1).any(0).nonzero()[:, 0]
        rows = self.autoencoder.decoder_rows(layer, used)[:, 0]
        guess = active[..., used] @ rows + weights.b_dec
        if self.watch is not None:
            self.watch(layer, ReplacedLayer(shaped, active, shaped, guess, self.counted))
        if layer not in self.layers:
            return value
        return torch.where(self.counted[..., None], guess, shaped).reshape(value.shape)


def _no_stream(block: Block) -> str:
    """Why there is no stream between a block's attention and MLP."""
    return "both read the block's input" if block.parallel else "stand aside of the stream"


def stage_of(autoencoder: Transcoder, layer: int) -> Stage:
    """What the autoencoder of a layer reads."""
    stage = autoencoder.layers[layer].stage
    return Stage.MLP_OUT if stage is None else stage


def added_by_attention(block: Block) -> nn.Module:
    """The module whose output is what attention adds to the stream, up to a multiplier."""
    post = block.attention_post_norm
    return block.attention_end if post is None or post.fixed else post.module
