"""One forward pass of the unmodified model, with everything the engine freezes written down."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement_models.around import PLAIN, Call, Factors
from replacement_models.hooks import (
    Hook,
    copied,
    eager_attention,
    first_of,
    first_tensor,
    forward_hooks,
    forward_pre_hooks,
    in_rows,
    replaced_first,
)
from replacement_models.host import Block, Host, Norm
from replacement_models.kernel_patterns import kernel_patterns
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.sites import ReadPoint, Site, Stage, WritePoint
from replacement_models.speed.few_rows import fast_maps
from replacement_models.transcoder import Transcoder


@dataclass(frozen=True, eq=False)
class ActiveFeatures:
    """The features that fired, in the order (layer, position, feature)."""

    layer: Int[Tensor, " active"]
    position: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    activation: Float[Tensor, " active"]
    pre_activation: Float[Tensor, " active"]

    __repr__ = one_line

    def __len__(self) -> int:
        return len(self.layer)

    def to(self, device: torch.device) -> "ActiveFeatures":
        """The same on `device`."""
        return ActiveFeatures(
            self.layer.to(device),
            self.position.to(device),
            self.feature.to(device),
            self.activation.to(device),
            self.pre_activation.to(device),
        )

    def __getitem__(self, rows: Int[Tensor, " chosen"]) -> "ActiveFeatures":
        return ActiveFeatures(
            self.layer[rows],
            self.position[rows],
            self.feature[rows],
            self.activation[rows],
            self.pre_activation[rows],
        )


@dataclass(frozen=True, eq=False)
class FrozenLayer:
    """What one layer's linear map needs from the prompt. Scales are norm denominators, (P, 1).

    Those of pre-norms are 1 where a block has none.
    """

    pattern: Float[Tensor, "heads queries keys"] | Callable[[], Tensor]
    """The attention pattern, or what makes it anew: patterns of long prompts fill the memory."""
    attention_scale: Float[Tensor, "positions 1"]
    mlp_scale: Float[Tensor, "positions 1"]
    attention_post_scale: Float[Tensor, "positions 1"] | None = None
    mlp_post_scale: Float[Tensor, "positions 1"] | None = None
    factors: Factors = PLAIN
    """What is held around the pattern."""

    __repr__ = one_line

    def attention_pattern(self) -> Float[Tensor, "heads queries keys"]:
        """The attention pattern, kept or made anew."""
        return self.pattern if isinstance(self.pattern, Tensor) else self.pattern()


@dataclass(frozen=True, eq=False)
class RecomputedPattern:
    """Runs an attention layer again on what it read; same weights, same inputs, same pattern."""

    host: Host
    attention: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @one_call()
    @torch.no_grad()
    def __call__(self) -> Float[Tensor, "heads queries keys"]:
        """(heads, queries, keys)."""
        with eager_attention(self.host.model):
            pattern: Tensor = self.attention(*self.args, **self.kwargs)[1][0]
        return pattern


@dataclass(frozen=True, eq=False)
class JoinedPattern:
    """Softmax heads and a kernel's heads of one layer, in this order."""

    softmax: RecomputedPattern
    kernel: Any
    """Called, it gives a pattern."""

    def __call__(self) -> Float[Tensor, "heads queries keys"]:
        """(heads, queries, keys)."""
        return torch.cat([self.softmax(), self.kernel()])


@dataclass(frozen=True, eq=False)
class Recording:
    """The original model on one prompt: P positions, L layers, width D, vocabulary V."""

    tokens: tuple[int, ...]
    token_vectors: Float[Tensor, "positions d_model"]
    position_vectors: Float[Tensor, "positions d_model"] | None
    """Learned position embeddings, where the model has them."""
    layers: Sequence[FrozenLayer]
    final_scale: Float[Tensor, "positions 1"]
    residuals: Sequence[Float[Tensor, "positions d_model"]]
    """Residual stream entering each layer, and last the one entering the final norm: L + 1."""
    between: Sequence[Float[Tensor, "positions d_model"]]
    """What each layer's MLP reads, before its norm: the residual stream between attention and MLP,
    in parallel blocks the one entering the layer, attention's output where a block stands aside."""
    inputs: Sequence[Float[Tensor, "positions d_model"]]
    """What the transcoder reads, a layer each."""
    outputs: Sequence[Float[Tensor, "positions d_model"]]
    """What the transcoder stands in for, a layer each."""
    logits_before_cap: Float[Tensor, "positions vocabulary"]
    """Of all positions, or of the last alone; so are those after the cap."""
    logits: Float[Tensor, "positions vocabulary"]
    features: ActiveFeatures

    __repr__ = one_line

    def stream(self, site: Site) -> Float[Tensor, "positions d_model"]:
        """The residual stream at one of its sites (`Host.stream_sites`)."""
        if site.stage is Stage.RESID_MID:
            return self.between[site.layer]
        assert site.stage is Stage.RESID_PRE
        return self.residuals[site.layer]


@dataclass
class Seen:
    """What the hooks of one forward pass write down; lists are in layer order."""

    token: Tensor | None = None
    position: Tensor | None = None
    residual: dict[int, Tensor] = field(default_factory=dict)
    """By layer: a block may run inside the one below it."""
    pattern: dict[int, Tensor | Callable[[], Tensor]] = field(default_factory=dict)
    """By layer."""
    calls: dict[int, dict[str, Call]] = field(default_factory=dict)
    """By layer, what a block's `watch` names."""
    norm_input: dict[nn.Module, Tensor] = field(default_factory=dict)
    mlp_input: list[Tensor] = field(default_factory=list)
    mlp_output: list[Tensor] = field(default_factory=list)

    def before_mlp(self, block: Block, layer: int) -> Float[Tensor, "positions d_model"]:
        """The residual stream that one layer's MLP reads, before its norm."""
        norm = block.mlp_norm
        return self.mlp_input[layer] if norm is None else self.norm_input[norm.module]


@torch.no_grad()
def record(
    host: Host,
    transcoder: Transcoder,
    tokens: Sequence[int],
    keep_patterns: bool = True,
    last_logits: bool = False,
) -> Recording:
    """Run the host once on `tokens` and encode what its MLPs read.

    Args:
        host: the model.
        transcoder: fits the host, every layer beside the host's.
        tokens: ids within the vocabulary, at most the context long.
        keep_patterns: hold every attention pattern, L·H·P² numbers; otherwise what remakes them.
        last_logits: only those of the last position.
    """
    seen, logits = _watched(host, transcoder, tokens, keep_patterns, last_logits)
    bottom = host.blocks[0].device
    final = seen.norm_input[host.final_norm.module]
    inputs = [
        read_input(
            block, transcoder.read_at(layer), seen.before_mlp(block, layer), seen.mlp_input[layer]
        )
        for layer, block in enumerate(host.blocks)
    ]
    final_scale = host.final_norm.scale(final)
    before_cap = logits
    if host.logit_cap is not None:
        which = slice(-len(logits), None)
        before_cap = host.unembed(host.final_norm.frozen(final[which], final_scale[which]))
    assert seen.token is not None
    return Recording(
        tokens=tuple(tokens),
        token_vectors=host.embed(seen.token).to(bottom),
        position_vectors=(
            None if seen.position is None else seen.position.expand_as(seen.token).to(bottom)
        ),
        layers=[_frozen(block, seen, layer) for layer, block in enumerate(host.blocks)],
        final_scale=final_scale,
        residuals=[*(seen.residual[layer] for layer in range(len(host.blocks))), final],
        between=[seen.before_mlp(block, layer) for layer, block in enumerate(host.blocks)],
        inputs=inputs,
        outputs=seen.mlp_output,
        logits_before_cap=before_cap,
        logits=logits,
        features=encode(transcoder, inputs).to(host.device),
    )


def attention_input(
    host: Host, recording: Recording, layer: int, write: WritePoint
) -> Float[Tensor, "positions d_read"]:
    """What one layer's attention reads, before its norm.

    Args:
        host: the model.
        recording: of it.
        layer: the layer.
        write: what was recorded of the MLP below, where that writes aside.
    """
    stream = recording.residuals[layer]
    if layer and host.blocks[layer - 1].aside:
        below, norm = recording.outputs[layer - 1], host.blocks[layer - 1].mlp_post_norm
        scale = recording.layers[layer - 1].mlp_post_scale
        if norm is not None and scale is not None and write is WritePoint.MLP_OUTPUT:
            below = norm.frozen(below, scale)
        stream = stream + below.to(stream.device)
    if host.blocks[layer].reads_tokens:
        stream = torch.cat([stream, recording.token_vectors.to(stream.device)], dim=-1)
    return stream


def read_input(
    block: Block, read: ReadPoint, residual: Tensor, mlp_input: Tensor
) -> Float[Tensor, "positions d_model"]:
    """The transcoder's input, from the MLP norm's input and the MLP's."""
    if read is ReadPoint.RESIDUAL:
        return residual
    if read is ReadPoint.NORMED or block.mlp_norm is None:
        return mlp_input
    return block.mlp_norm.centre(residual) / block.mlp_norm.scale(residual)


def encode(transcoder: Transcoder, inputs: Sequence[Tensor]) -> ActiveFeatures:
    """Features with a non-zero activation (a TopK activation may be negative)."""
    parts, last = [], inputs[-1].device
    with fast_maps(len(inputs[0]), inputs[0].device):
        for layer, x in enumerate(inputs):
            hidden, active = transcoder.encode(layer, x)
            at = (active != 0).nonzero(as_tuple=True)
            found = torch.full_like(at[0], layer), *at, active[at], hidden[at]
            parts.append([column.to(last) for column in found])
    return ActiveFeatures(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def write_module(block: Block, write: WritePoint) -> nn.Module:
    """The module whose output the transcoder reconstructs."""
    norm = block.mlp_post_norm
    if write is WritePoint.POST_NORM and norm is not None and not norm.fixed:
        return norm.module
    return block.mlp if block.mlp_out is None else block.mlp_out


def write_hooks(block: Block, write: WritePoint, hook: Hook) -> list[tuple[nn.Module, Hook]]:
    """A forward hook where what the transcoder reconstructs comes about, and where it is put in.

    Args:
        block: of the host.
        write: of the layer's transcoder.
        hook: as of `forward_hooks`, given what the MLP writes.
    """
    module = write_module(block, write)
    if block.mlp_beside is None:  # Falcon adds to the output in its place
        return [(module, lambda inputs, output: hook(inputs, copied(output)))]
    before: list[Tensor] = []

    def keep(inputs: Any, output: Any) -> None:
        before[:] = [first_of(output)]

    def added(inputs: Any, output: Any) -> Any:
        beside = before.pop().reshape(first_of(output).shape)
        new = hook(inputs, first_of(output) + beside)
        return None if new is None else replaced_first(output, new - beside)

    return [(block.mlp_beside, keep), (module, added)]


def norms(block: Block) -> list[Norm]:
    """The norms of a block, those it has."""
    every = (
        block.attention_norm,
        block.attention_post_norm,
        block.mlp_norm,
        block.mlp_post_norm,
    )
    return [norm for norm in every if norm is not None]


def _watched(
    host: Host,
    transcoder: Transcoder,
    tokens: Sequence[int],
    keep_patterns: bool,
    last_logits: bool,
) -> tuple[Seen, Tensor]:
    """The one forward pass: what its hooks saw, and its logits."""
    seen = Seen()
    taps = [*_taps(host, transcoder, seen), *call_taps(host, seen.calls)]
    remade = []
    if keep_patterns:
        taps += [(block.attention, keep) for block, keep in pattern_taps(host, seen.pattern)]
    else:
        remade = _remake_taps(host, seen)
    with (
        fast_maps(len(tokens), host.device),
        eager_attention(host.model),
        kernel_patterns(host, seen.pattern, keep_patterns),
        forward_pre_hooks(remade),
        forward_hooks(taps),
    ):
        return seen, host.run(tokens, keep_patterns, last_logits)


def call_taps(
    host: Host, into: dict[int, dict[str, Call]]
) -> list[tuple[nn.Module, Callable[[Any, Any], None]]]:
    """Hooks that keep the calls that blocks are watched for."""

    def keep(layer: int, name: str) -> Callable[[Any, Any], None]:
        def kept(inputs: Any, output: Any) -> None:
            into.setdefault(layer, {})[name] = Call(inputs, output)

        return kept

    return [
        (module, keep(layer, name))
        for layer, block in enumerate(host.blocks)
        if block.watch is not None
        for name, module in block.watch.modules.items()
    ]


def pattern_taps(
    host: Host, into: dict[int, Any]
) -> Iterator[tuple[Block, Callable[[Any, Any], None]]]:
    """Blocks whose attention returns its pattern, and hooks that keep it."""

    def keep(layer: int) -> Callable[[Any, Any], None]:
        def kept(_: Any, output: Any) -> None:
            own = output[1][0]
            into[layer] = torch.cat([own, into[layer]]) if layer in into else own

        return kept

    for layer, block in enumerate(host.blocks):
        if block.returns_pattern:
            yield block, keep(layer)


def _taps(host: Host, transcoder: Transcoder, seen: Seen) -> list[tuple[nn.Module, Any]]:
    def keep_token(inputs: Any, output: Tensor) -> None:
        seen.token = output[0]

    def keep_position(inputs: Any, output: Tensor) -> None:
        seen.position = output[0] if output.ndim == 3 else output

    def keep_output(_: Any, output: Any) -> None:
        seen.mlp_output.append(_first(output))

    def keep_norm(norm: Norm) -> Any:
        def keep(inputs: Any, output: Tensor) -> None:
            # What accelerate moves as the module is called, a hook sees before.
            seen.norm_input[norm.module] = in_rows(first_tensor(inputs), 1)[0].to(norm.device)

        return keep

    taps: list[tuple[nn.Module, Any]] = [(host.embedding, keep_token)]
    if host.position_embedding is not None:
        taps.append((host.position_embedding, keep_position))
    for layer, block in enumerate(host.blocks):
        taps += [
            (block.module, _keeping(seen.residual, layer, block.device)),
            (block.mlp, lambda inputs, _: seen.mlp_input.append(_first(first_tensor(inputs)))),
            *write_hooks(block, transcoder.write_at(layer), keep_output),
            *((norm.module, keep_norm(norm)) for norm in norms(block)),
        ]
    return [*taps, (host.final_norm.module, keep_norm(host.final_norm))]


def _keeping(into: dict[int, Tensor], layer: int, device: torch.device) -> Hook:
    def keep(inputs: Any, _: Any) -> None:
        into[layer] = first_tensor(inputs)[0].to(device)

    return keep


def _remake_taps(host: Host, seen: Seen) -> list[tuple[nn.Module, Any]]:
    def tap(layer: int, attention: nn.Module) -> Callable[..., None]:
        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            own = RecomputedPattern(host, attention, args, kwargs)
            beside = seen.pattern.get(layer)
            seen.pattern[layer] = own if beside is None else JoinedPattern(own, beside)

        return keep

    return [
        (block.attention, tap(layer, block.attention))
        for layer, block in enumerate(host.blocks)
        if block.returns_pattern
    ]


def _first(output: Any) -> Tensor:
    """(P, D) of a module's output, whether it comes alone or in a tuple."""
    return in_rows(first_of(output), 1)[0]


def _frozen(block: Block, seen: Seen, layer: int) -> FrozenLayer:
    def scale(norm: Norm | None) -> Tensor | None:
        return None if norm is None else norm.scale(seen.norm_input[norm.module])

    one = torch.ones_like(seen.residual[layer][:, :1])
    attention_scale, mlp_scale = scale(block.attention_norm), scale(block.mlp_norm)
    return FrozenLayer(
        pattern=seen.pattern[layer],
        attention_scale=one if attention_scale is None else attention_scale,
        mlp_scale=one if mlp_scale is None else mlp_scale,
        attention_post_scale=scale(block.attention_post_norm),
        mlp_post_scale=scale(block.mlp_post_norm),
        factors=factors_of(block, seen.calls.get(layer, {})),
    )


def factors_of(block: Block, calls: Mapping[str, Call]) -> Factors:
    """What is held around a block's pattern, given what was watched."""
    return PLAIN if block.watch is None else block.watch.factors(calls)
