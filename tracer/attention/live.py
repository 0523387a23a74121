"""Rows pulled down with attention scores, and norm denominators, answering to the first order.

The local model holds both as recorded. Here gradients also take the ways through them: through the
softmax to queries and keys, through all that a layer holds where that is more (whole_layers.py),
and through the denominators. What a node adds along these ways is the
first-order change that the graph leaves out; nothing is conserved in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.folding import mlp_post_norm
from replacement_models.host import Block, Norm
from replacement_models.sites import ReadPoint, stream_number
from tracer.attention.explained import Explained, pulled_to_stream
from tracer.attention.plain_streams import head_gradients, join, pulled_values
from tracer.attention.queries_keys import QueryKeyMap, Reached, Scores
from tracer.attention.whole_layers import WholeLayer, whole_layers
from tracer.attribution.targets import TargetRows

SURE = 1e-2
"""Attention left for the other keys below which log-odds count no further."""
Visit = Callable[[int, Float[Tensor, "rows positions d_model"]], None]


@dataclass(frozen=True)
class Live:
    """What answers."""

    attention: bool
    norms: bool
    odds: bool = False
    """Weigh scores by QK attribution instead of by their slope: what went through a key, times what
    the scores do to its log-odds against the other keys. A head that looks at one key alone has
    almost no slope, but what made it look there counts in full. Layers that hold more than scores
    have no odds, and keep their slope."""


@dataclass(frozen=True, eq=False)
class LiveLayer:
    """One layer as gradients pass it, with what was recorded there."""

    block: Block
    attended: Float[Tensor, "positions d_model"]
    """Attention's output before a post-norm."""
    answers: "ScoredLayer | WholeLayer"
    """Scores of queries and keys; where a layer holds more than them, all of it."""


@dataclass(frozen=True, eq=False)
class ScoredLayer:
    """What the pattern of a softmax layer answers with."""

    values: Float[Tensor, "positions heads d_head"]
    """What every head reads at a key, biases included."""
    pattern: Float[Tensor, "heads queries keys"]
    slope: Float[Tensor, "heads queries keys"]
    """Of the soft cap, times the scaling: of a score in query times key."""
    reached: Reached

    @property
    def scores(self) -> Scores:
        """Queries and keys."""
        return self.reached.scores


def live_layers(about: Explained, live: Live) -> dict[int, LiveLayer]:
    """Record what every layer's answers depend on."""
    blocks, recording = about.model.host.blocks, about.recording
    held = [layer for layer, block in enumerate(blocks) if not block.plain]
    whole = whole_layers(about.model, recording, held)
    scored = about.query_keys([layer for layer in range(len(blocks)) if layer not in whole])
    found = {}
    for layer, block in enumerate(blocks):
        frozen, stream = recording.layers[layer], recording.residuals[layer]
        norm, pattern = block.attention_norm, frozen.attention_pattern()
        hidden = stream if norm is None else norm.frozen(stream, frozen.attention_scale)
        found[layer] = LiveLayer(
            block=block,
            attended=block.attend(hidden, pattern, frozen.factors),
            answers=whole[layer]
            if layer in whole
            else _scored(block, scored[layer], pattern, live.norms),
        )
    return found


def _scored(block: Block, place: QueryKeyMap, pattern: Tensor, norms: bool) -> ScoredLayer:
    reached = place.scores(live=norms)
    scores = reached.scores
    slope = torch.full_like(pattern, scores.scaling)
    if scores.cap is not None:
        slope = slope * (1 - torch.tanh(scores.every().detach() / scores.cap) ** 2)
    values = block.mixable(place.hidden)
    return ScoredLayer(
        values=values.repeat_interleave(len(block.output) // len(block.value), -2),
        pattern=pattern,
        slope=slope,
        reached=reached,
    )


def pull_live(
    about: Explained,
    rows: TargetRows,
    layers: dict[int, LiveLayer],
    live: Live,
    visit: Visit,
) -> Float[Tensor, "rows positions d_model"]:
    """Pull rows down to the bottom of the stream.

    Args:
        about: the graph's prompt and model.
        rows: of features or logits.
        layers: by number.
        live: what answers.
        visit: called at every layer, from the top, with the gradient that what its MLP writes to
            the stream is scored with.

    Returns:
        The gradients of the stream entering layer 0.
    """
    local, recording = about.local, about.recording
    rows = _answering(about, rows) if live.norms else rows
    gradient = rows.vector.new_zeros(len(rows), local.positions, rows.vector.shape[1])
    for layer in range(len(local.layers) - 1, -1, -1):
        maps, known = local.layers[layer], layers[layer]
        gradient, rows = gradient.to(maps.device), rows.passing(maps.device)
        join(gradient, rows, stream_number(layer + 1))
        above = _through_mlp_post_norm(about, layer, gradient) if live.norms else gradient
        visit(layer, above)
        stays = gradient + _skipped(about, layer, above, live)
        if not maps.parallel:
            join(stays, rows, stream_number(layer, between=True))
        read = gradient if maps.parallel else stays
        frozen, norm = recording.layers[layer], known.block.attention_post_norm
        held = frozen.attention_post_scale
        if live.norms and norm is not None and not norm.fixed and held is not None:
            read = _post_norm_answers(norm, known.attended, held, read)
        pulled = _pulled(about, layer, known.answers, read, live)
        norm = known.block.attention_norm
        if live.norms and norm is not None:
            stream = recording.residuals[layer]
            pulled = _norm_answers(norm, stream, frozen.attention_scale, pulled)
        gradient = stays + pulled
    join(gradient, rows, stream_number(0))
    return gradient


def _answering(about: Explained, rows: TargetRows) -> TargetRows:
    """Rows of features and logits with the norm they read from answering."""
    host, recording = about.model.host, about.recording
    vector = rows.vector.clone()
    sites = {site.number: site.layer for site in host.mlp_sites}
    for row, site in enumerate(rows.site.tolist()):
        position = int(rows.position[row])
        if site == stream_number(len(host.blocks)):
            norm: Norm | None = host.final_norm
            stream, scale = recording.residuals[-1], recording.final_scale
        else:
            layer = sites[site]
            read = about.model.transcoder.read_at(layer)
            norm = None if read is ReadPoint.RESIDUAL else host.blocks[layer].mlp_norm
            stream, scale = recording.between[layer], recording.layers[layer].mlp_scale
        if norm is not None:
            at = slice(position, position + 1)
            own = vector[row][None].to(stream.device)
            vector[row] = _norm_answers(norm, stream[at], scale[at], own)[0]
    return TargetRows(rows.site, rows.position, vector, rows.bias, rows.value)


def _norm_answers(
    norm: Norm,
    stream: Float[Tensor, "positions d_model"],
    scale: Float[Tensor, "positions 1"],
    pulled: Float[Tensor, "*rows positions d_model"],
) -> Float[Tensor, "*rows positions d_model"]:
    """A gradient pulled back through a norm's held denominator, with the denominator's answer."""
    centred = norm.centre(stream)
    share = (pulled * centred).sum(-1, keepdim=True) / (scale**2 * stream.shape[-1])
    return pulled - share * centred


def _post_norm_answers(
    norm: Norm,
    inputs: Float[Tensor, "positions d_model"],
    scale: Float[Tensor, "positions 1"],
    gradient: Float[Tensor, "rows positions d_model"],
) -> Float[Tensor, "rows positions d_model"]:
    """A gradient above a post-norm as what passes the norm's held denominator must be scored.

    What comes out of the held norm is weighed with it; coordinates whose weight is zero stay as
    they are.
    """
    centred = norm.centre(inputs)
    out = (gradient * (centred / scale * norm.weight)).sum(-1, keepdim=True)
    share = centred / (norm.weight * scale * inputs.shape[-1])
    return gradient - out * torch.where(norm.weight == 0, 0.0, share)


def _through_mlp_post_norm(about: Explained, layer: int, gradient: Tensor) -> Tensor:
    block, frozen = about.model.host.blocks[layer], about.recording.layers[layer]
    norm = mlp_post_norm(block, about.model.transcoder.write_at(layer))
    if norm is None or norm.fixed or frozen.mlp_post_scale is None:
        return gradient
    output = about.recording.outputs[layer]
    return _post_norm_answers(norm, output, frozen.mlp_post_scale, gradient)


def _skipped(about: Explained, layer: int, above: Tensor, live: Live) -> Tensor | float:
    """What the linear skip pulls back."""
    maps, block = about.local.layers[layer], about.model.host.blocks[layer]
    if maps.skip is None:
        return 0.0
    pulled = (above @ maps.skip.T) * maps.skip_scale
    read = about.model.transcoder.read_at(layer)
    if not live.norms or read is ReadPoint.RESIDUAL or block.mlp_norm is None:
        return pulled
    frozen = about.recording.layers[layer]
    return _norm_answers(block.mlp_norm, about.recording.between[layer], frozen.mlp_scale, pulled)


def _pulled(
    about: Explained,
    layer: int,
    answers: ScoredLayer | WholeLayer,
    read: Float[Tensor, "rows positions d_model"],
    live: Live,
) -> Float[Tensor, "rows positions d_model"]:
    """A gradient of attention's output as one of the stream: by values, and by what answers."""
    if live.attention and isinstance(answers, WholeLayer):
        return pulled_to_stream(about, layer, answers.pulled(read))[0]
    maps = about.local.layers[layer]
    pulled = pulled_values(maps, head_gradients(maps, read))
    if live.attention and isinstance(answers, ScoredLayer):
        pulled = pulled + _through_scores(about, layer, answers, read, live.odds)
    return pulled


def _through_scores(
    about: Explained,
    layer: int,
    known: ScoredLayer,
    read: Float[Tensor, "rows positions d_model"],
    odds: bool,
) -> Float[Tensor, "rows positions d_model"]:
    """What a gradient of attention's output is as one of the stream, by way of the scores."""
    maps, frozen, scores = about.local.layers[layer], about.recording.layers[layer], known.scores
    heads, kv_heads = len(known.pattern), len(scores.keys)
    worth = head_gradients(maps, read).unflatten(-1, (heads, -1))
    if frozen.attention_post_scale is not None:
        worth = worth / frozen.attention_post_scale[:, :, None]
    values = torch.einsum("rqhi,khi->rhqk", worth, known.values)
    moved = _moved(known.pattern, values, odds) * known.slope
    group = heads // kv_heads
    keys = scores.keys.detach().repeat_interleave(group, 0)
    queries = torch.einsum("rhqk,hki->rhqi", moved, keys)
    into_keys = torch.einsum("rhqk,hqi->rhki", moved, scores.queries.detach())
    into_keys = into_keys.unflatten(1, (kv_heads, group)).sum(2)
    return pulled_to_stream(about, layer, known.reached.pulled(queries, into_keys))[0]


def _moved(
    pattern: Float[Tensor, "heads queries keys"],
    values: Float[Tensor, "rows heads queries keys"],
    odds: bool,
) -> Float[Tensor, "rows heads queries keys"]:
    """What scores after the cap are worth, by what attention to each key is worth."""
    carried = pattern * values
    if not odds:
        return pattern * (values - carried.sum(-1, keepdim=True))
    against = carried / (1 - pattern).clamp(min=SURE)
    moved = carried - pattern * (against.sum(-1, keepdim=True) - against)
    return torch.where(pattern < 1, moved, 0.0)  # a key alone has no odds
