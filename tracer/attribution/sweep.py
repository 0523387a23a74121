"""The Jacobian engine: rows swept down the layers together, with explicit transposed linear maps.

No autograd and no forward pass a row. Rows of nearby positions go in one chunk, cut off after the
last of them (causality); inside a chunk a row joins at the site it reads from, so no work is done
above its layer. Memory is bounded by the chunk, whatever the number of rows. `plain_sweep.py` has
the same in its plainest form, and tests compare the two.

Of a model over several devices every layer is passed where it stands: a chunk's gradients, and what
its rows have summed so far, move on together where the next layer stands elsewhere. Sums are added
in the same order on any number of devices, and weights never move.
"""

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.sites import stream_number, top_layer
from replacement_models.speed.allocator import stay_within
from tracer.attribution.chunks import each, side_by_side_sizes
from tracer.attribution.indices import on_device
from tracer.attribution.local_model import LinearLayer, LocalModel, pattern_bytes
from tracer.attribution.product import add_product, product, summed_in
from tracer.attribution.scoring import (
    EffectSums,
    JoiningRows,
    batched,
    score_carried,
    score_early,
    score_mixed,
    score_read_tokens,
    score_spread,
    score_tokens,
    score_writers,
)
from tracer.attribution.sizes import Sizes
from tracer.attribution.targets import TargetRows
from tracer.attribution.writers import padded_bytes

KEYS = 128
"""Long patterns are mixed in blocks of so many keys, so that queries before them cost nothing."""
BLOCKS_OF_KEYS = 8
"""On a GPU so many blocks at most: more would save a ninth of the operations."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Direct effects on some rows, in units of what each row reads."""

    sources: Float[Tensor, "rows columns"]
    """Columns: features, errors (layer-major), tokens, as `LocalModel` numbers them."""
    constant: Float[Tensor, " rows"]
    """What biases, learned positions and skipped positions contribute, the row's own included."""


def sweep(local: LocalModel, rows: TargetRows, into: Tensor | None = None) -> Effects:
    """Effect of every source on every row.

    Args:
        local: the local model.
        rows: targets.
        into: (rows, columns) memory for the effects, whatever it holds; None takes fresh.

    Source: Ameisen et al. 2025, "Circuit Tracing", section "Attribution graphs"; here
    A[t, s] = Σ_m (what s writes at m) · J(m → t)ᵀ v_t, with gradients stopped at every MLP.
    """
    dtype = summed_in(rows.vector.dtype)
    if into is None:
        into = rows.vector.new_empty(len(rows), local.columns, dtype=dtype)
    sources, room = into.zero_(), _ChunkRoom()
    constant = rows.bias.to(dtype, copy=True)
    fired = local.features.activation.to(dtype)[:, None]
    sweep_some = _sweep_chunk if rows.weights is None else _sweep_spread
    late = np.flatnonzero(rows.position >= local.start)
    swept = rows if len(late) == len(rows) else rows[late]

    def sweep_chunk(chunk: np.ndarray) -> None:
        at = on_device(late[chunk], sources.device)
        summed, turned = room.of(sources, len(chunk))
        scores = EffectSums(summed, constant.new_zeros(len(chunk)))
        scores = sweep_some(local, swept[chunk], scores).to(sources.device)
        scores.sources[: len(fired)].mul_(fired)
        sources.index_copy_(0, at, turned.copy_(scores.sources.T))
        constant.index_add_(0, at, scores.constant)
        stay_within()

    each(sweep_chunk, swept, any(layer.remakes_pattern for layer in local.layers))
    score_early(local, rows, sources, constant)
    return Effects(sources, constant)


class _ChunkRoom(threading.local):
    """Memory that the chunks of one thread use one after the other."""

    held: Tensor | None = None

    def of(self, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Zeros (columns, rows), and (rows, columns) that hold anything."""
        columns = like.shape[1]
        if self.held is None or self.held.shape[1] < rows * columns:
            self.held = like.new_empty(2, rows * columns)
        summed, turned = self.held[:, : rows * columns]
        return summed.view(columns, rows).zero_(), turned.view(rows, columns)


def _sweep_chunk(local: LocalModel, rows: TargetRows, scores: EffectSums) -> EffectSums:
    """Sweep rows sorted by site from the top, adding to `scores`.

    Rows that have joined have a gradient (rows, positions, D), from position `local.start` on.

    Returns:
        `scores`, beside the bottom layer.
    """
    end = int(rows.position.max()) + 1
    sites = rows.site.tolist()
    gradients = rows.vector.new_empty(len(rows), end - local.start, rows.vector.shape[1])
    joined, projected, mixed, aside = 0, None, None, None
    for layer in range(top_layer(max(sites)), -1, -1):
        there = local.layers[layer].device
        rows, scores = rows.passing(there), scores.to(there)
        gradients = _passing(gradients, joined, there)
        mixed = None if mixed is None else mixed.to(there)
        above = joining_rows(rows, sites, joined, stream_number(layer + 1))
        between = joining_rows(rows, sites, joined + len(above), stream_number(layer, between=True))
        if local.near_aside(layer):
            ends = joined + len(above), joined + len(above) + len(between)
            _place(above, gradients[joined : ends[0]], local.start)
            _place(between, gradients[ends[0] : ends[1]], local.start)
            aside = _pass_whole(local, layer, gradients, ends, aside, scores)
            joined, projected, mixed = ends[1], None, None
            continue
        score_writers(local, layer, gradients[:joined], above, scores)
        score_mixed(local, mixed, scores)
        after = joined + len(above) + len(between)
        score_carried(local, layer, between, scores, after)
        if not (layer == 0 and local.lifted):
            fresh = above, between
            projected, mixed = _pass_layer(local, layer, gradients, joined, fresh, projected)
        joined = after
    _place(joining_rows(rows, sites, joined, stream_number(0)), gradients[joined:], local.start)
    score_tokens(local, gradients, scores, joined if local.lifted else 0)
    return scores


def _place(joining: JoiningRows, room: Float[Tensor, "rows positions d_model"], start: int) -> None:
    """Write the gradients of rows that stand at one position each yet."""
    room.zero_()
    at = on_device(joining.position - start, room.device)
    room[torch.arange(len(joining), device=at.device), at] = joining.vector


def _passing(
    gradients: Float[Tensor, "rows positions d_model"], joined: int, device: torch.device
) -> Float[Tensor, "rows positions d_model"]:
    """The gradients of the rows that have joined, with room for the others, on `device`."""
    if gradients.device == device:
        return gradients
    there = torch.empty_like(gradients, device=device)
    there[:joined].copy_(gradients[:joined])
    return there


def sweep_gradients(
    local: LocalModel, layer: int, gradients: Float[Tensor, "rows positions d_model"]
) -> Effects:
    """Effect of every source on rows given by what they weigh the stream entering a layer with.

    Queries and keys of an attention head are such rows: with rotary positions a key's vector is
    another one at every position. The rows' own biases are not known here.

    Args:
        local: a plain local model, in which gradients go to every position.
        layer: whose entering stream the rows read.
        gradients: one for every row, overwritten.
    """
    assert local.start == 0
    dtype = summed_in(gradients.dtype)
    scores = EffectSums(
        gradients.new_zeros(local.columns, len(gradients), dtype=dtype),
        gradients.new_zeros(len(gradients), dtype=dtype),
    )
    home, features = local.features.activation.device, len(local.features)
    sites = [stream_number(layer)] * len(gradients)
    scores = _sweep_whole(local, gradients, sites, scores).to(home)
    scores.sources[:features].mul_(local.features.activation.to(dtype)[:, None])
    return Effects(scores.sources.T, scores.constant)


def _sweep_spread(local: LocalModel, rows: TargetRows, scores: EffectSums) -> EffectSums:
    """Sweep rows that stand at several positions: each joins with its whole gradient."""
    assert rows.weights is not None
    end = int(rows.position.max()) + 1
    weights = rows.weights[:, local.start : end]
    gradients = weights[:, :, None] * rows.vector[:, None]
    return _sweep_whole(local, gradients, rows.site.tolist(), scores)


def _sweep_whole(
    local: LocalModel,
    gradients: Float[Tensor, "rows positions d_model"],
    sites: list[int],
    scores: EffectSums,
) -> EffectSums:
    """Sweep whole gradients from `local.start` on, sorted by site from the top, in place."""
    joined, aside = 0, None
    for layer in range(top_layer(max(sites)), -1, -1):
        device = local.layers[layer].device
        gradients, scores = gradients.to(device), scores.to(device)
        above = joined + sites.count(stream_number(layer + 1))
        joined = above + sites.count(stream_number(layer, between=True))
        aside = _pass_whole(local, layer, gradients, (above, joined), aside, scores)
    score_tokens(local, gradients, scores, joined if local.lifted else 0)
    return scores


def _pass_whole(
    local: LocalModel,
    layer: int,
    gradients: Float[Tensor, "rows positions d_model"],
    ends: tuple[int, int],
    aside: Float[Tensor, "dense positions d_model"] | None,
    scores: EffectSums,
) -> Float[Tensor, "joined positions d_model"] | None:
    """Score what one layer writes and pull whole gradients back through it, in place.

    Args:
        local: the local model.
        layer: its layer.
        gradients: of all rows.
        ends: how many rows have joined above the layer's MLP, and with those between it and
            attention.
        aside: what the first rows weigh that with which the layer writes aside, if it does.
        scores: added to.

    Returns:
        The same of what the layer below writes aside, if it does.
    """
    maps, start, between = local.layers[layer], local.start, slice(*ends)
    above = gradients[: between.start]
    if maps.aside:
        above = above[:0] if aside is None else aside.to(maps.device)
    nobody = JoiningRows(above[:0, 0], np.zeros(0, dtype=np.int64))
    score_writers(local, layer, above, nobody, scores)
    score_spread(local, layer, gradients[between], scores, between)
    if not between.stop or (layer == 0 and local.lifted):
        return None
    pattern = maps.transposed_pattern(start, start + gradients.shape[1])
    if maps.aside:
        _pass_aside(local, layer, pattern, gradients, between, above, scores)
        return None
    below, _ = skip_back(maps, above, nobody, start)
    below = torch.cat([below, gradients[between]])
    values = _attention(maps, pattern, above if maps.parallel else below, None, start)
    back = product(values, maps.value).view_as(below)
    torch.add(below, back, out=gradients[: between.stop])
    return back if layer and local.layers[layer - 1].aside else None


def _pass_aside(
    local: LocalModel,
    layer: int,
    pattern: Tensor,
    gradients: Float[Tensor, "rows positions d_model"],
    between: slice,
    aside: Float[Tensor, "dense positions d_model"],
    scores: EffectSums,
) -> None:
    """Past a layer that stands aside: the stream's gradients stay, what its MLP reads is added.

    Args:
        local: the local model.
        layer: its layer.
        pattern: its pattern.
        gradients: of all rows.
        between: those that read what its MLP reads.
        aside: what the first rows weigh that with which the layer writes.
        scores: tokens that attention reads beside the stream are added to.
    """
    maps = local.layers[layer]
    read = torch.zeros_like(gradients[: between.stop])
    if maps.skip is not None:
        scale = maps.skip_scale[local.start : local.start + read.shape[1]]
        read[: len(aside)] = product(aside.flatten(0, 1), maps.skip).view_as(aside) * scale
    read[between], gradients[between] = gradients[between], 0
    values = _attention(maps, pattern, read, None, local.start)
    gradients[: between.stop] += product(values, maps.value).view_as(read)
    if maps.tokens is not None:
        score_read_tokens(local, maps.tokens, values.unflatten(0, read.shape[:2]), scores)


def _pass_layer(
    local: LocalModel,
    layer: int,
    gradients: Tensor,
    joined: int,
    joining: tuple[JoiningRows, JoiningRows],
    projected: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Pull gradients back through one layer's skip and attention, in place.

    Args:
        local: the local model.
        layer: its layer.
        gradients: of all rows, (rows, positions, D), room for those that have not joined yet.
        joined: how many have; those joining follow.
        joining: rows that read above the layer's MLP and between it and attention.
        projected: what the layer's output map makes of the last rows that have joined, where known.

    Returns:
        `projected` for the layer below, of the rows joining now, where that pays; and the gradient
        as attention has mixed it, (rows, positions, values), where it is pulled back no further.
    """
    above, between = joining
    maps, gradient = local.layers[layer], gradients[:joined]
    pattern = maps.transposed_pattern(local.start, local.start + gradients.shape[1])
    (below, own), (read, reading) = beside_and_into(maps, gradient, (above, between), local.start)
    mixed = None
    if joined:
        values = _attention(maps, pattern, read, projected, local.start)
        if layer == 1 and local.mixed is not None:
            mixed = values.unflatten(0, (joined, -1))
        else:
            below = add_product(below.flatten(0, 1), values, maps.value).view_as(below)
        if below.data_ptr() != gradient.data_ptr():
            gradient.copy_(below)
    if not len(own):
        return None, mixed
    room = gradients[joined : joined + len(own)]
    return _first_attention(local, layer, pattern, room, (reading, own)), mixed


def joining_rows(rows: TargetRows, sites: list[int], joined: int, site: int) -> JoiningRows:
    """The rows that read at `site`, which follow the `joined` ones in order."""
    end = joined + sites[joined:].count(site)
    return JoiningRows(rows.vector[joined:end], rows.position[joined:end])


def _both(first: JoiningRows, second: JoiningRows) -> JoiningRows:
    return JoiningRows(
        torch.cat([first.vector, second.vector]), np.concatenate([first.position, second.position])
    )


def beside_and_into(
    maps: LinearLayer, gradient: Tensor, joining: tuple[JoiningRows, JoiningRows], start: int
) -> tuple[tuple[Tensor, JoiningRows], tuple[Tensor, JoiningRows]]:
    """Gradients below a layer's skip, beside its attention; and what attention's output is read by.

    Args:
        maps: the layer.
        gradient: of rows that have joined, above it.
        joining: rows that read above the layer's MLP and between it and attention.
        start: position of the first gradient.

    Returns:
        Both twice: of rows that have joined, and of those that join.
    """
    above, between = joining
    below, own = skip_back(maps, gradient, above, start)
    own = _both(own, between)
    into = (gradient, _both(above, between)) if maps.parallel else (below, own)
    return (below, own), into


def skip_back(
    maps: LinearLayer, gradient: Tensor, joining: JoiningRows, start: int
) -> tuple[Tensor, JoiningRows]:
    """Add the pull-back through the linear skip."""
    if maps.skip is None:
        return gradient, joining
    scale = maps.skip_scale[start : start + gradient.shape[1]]
    vector = product(joining.vector, maps.skip)
    vector.mul_(maps.skip_scale[on_device(joining.position, maps.skip_scale.device)])
    vector.add_(joining.vector)
    pulled = product(gradient.flatten(0, 1), maps.skip).view_as(gradient)
    return torch.addcmul(gradient, pulled, scale), JoiningRows(vector, joining.position)


def _attention(
    maps: LinearLayer, pattern: Tensor, read: Tensor, projected: Tensor | None, start: int
) -> Float[Tensor, "rows_positions kv_heads_d_head"]:
    """What one attention layer pulls back of `read`, as far as its values.

    Args:
        maps: the layer.
        pattern: its pattern.
        read: (rows, positions, D).
        projected: of the last rows: what the output map makes of them.
        start: position of the first gradient.
    """
    rows, positions, _ = read.shape
    kv_heads, _, group, _ = pattern.shape
    early = rows - (0 if projected is None else len(projected))
    found = [] if projected is None else [projected.flatten(0, 1)]
    if early:
        found.insert(0, product(read[:early].flatten(0, 1), maps.output))
    found = [
        maps.read_heads(part.view(-1, positions, part.shape[-1]), start).flatten(0, 1)
        for part in found
    ]
    by_head = [
        part.view(len(part) // positions, positions, kv_heads, group, -1).permute(2, 3, 1, 0, 4)
        for part in found
    ]
    heads = by_head[0] if len(by_head) == 1 else torch.cat(by_head, dim=3)
    mixed = _mix(pattern, heads.flatten(3)).view(kv_heads, positions, rows, -1)
    values = mixed.permute(2, 1, 0, 3).reshape(rows, positions, -1)
    return maps.read_values(values, start).flatten(0, 1)


def _first_attention(
    local: LocalModel,
    layer: int,
    pattern: Tensor,
    out: Float[Tensor, "rows positions d_model"],
    joining: tuple[JoiningRows, JoiningRows],
) -> Float[Tensor, "rows positions heads_d_head"] | None:
    """Write what a layer pulls back of rows that pass their first attention.

    Args:
        local: the local model.
        layer: its layer.
        pattern: its pattern.
        out: room for the rows.
        joining: the rows as attention reads them, and as they stand below it.

    Returns:
        What `projected_below` says of them.
    """
    (reading, own), maps = joining, local.layers[layer]
    by_head = heads_of(maps, reading)
    if maps.around is not None and not maps.around.bare_values:
        spread_around(out, pattern, by_head, maps, own, local.start)
        return None
    spread_over_keys(out, pattern, by_head, maps.value, own, local.start)
    return projected_below(local, layer, pattern, by_head, (own, local.start))


def projected_below(
    local: LocalModel,
    layer: int,
    pattern: Tensor,
    by_head: Float[Tensor, "rows heads_d_head"],
    spread: tuple[JoiningRows, int],
) -> Float[Tensor, "rows positions heads_d_head"] | None:
    """What the output map of the layer below makes of rows that an attention layer just spread.

    Virtual weights take them there head by head, not position by position. None where that does
    not pay, or nothing is projected below.

    Args:
        local: the local model.
        layer: the layer that spread them.
        pattern: its pattern.
        by_head: what its output map makes of them.
        spread: the rows as they stand below it, and the first position.
    """
    below, (own, start) = local.layers[layer - 1], spread
    if layer == int(local.lifted) or below.virtual is None:
        return None
    there = JoiningRows(product(own.vector, below.output), own.position)
    projected = by_head.new_empty(len(own), pattern.shape[1], len(below.virtual))
    spread_over_keys(projected, pattern, by_head, below.virtual, there, start)
    return projected


def heads_of(maps: LinearLayer, rows: JoiningRows) -> Float[Tensor, "rows heads_d_head"]:
    """What rows at one position yet weigh heads' outputs with."""
    heads = product(rows.vector, maps.output)
    if maps.around is not None and maps.around.outputs is not None:
        heads.mul_(maps.around.outputs[on_device(rows.position, heads.device)])
    return heads


def spread_around(
    out: Float[Tensor, "rows positions d_model"],
    pattern: Tensor,
    by_head: Float[Tensor, "rows heads_d_head"],
    maps: LinearLayer,
    own: JoiningRows,
    start: int,
) -> None:
    """As `spread_over_keys`, by way of the values: taps or factors stand before the pattern."""
    kv_heads, keys, group, _ = pattern.shape
    by_head = by_head.view(len(by_head), kv_heads, group, -1)
    if batched(by_head):  # what is mixed takes what `_widest` counts of a chunk
        at = on_device(own.position - start, pattern.device)
        mixed = torch.einsum("vkgr,rvgi->rkvi", pattern.index_select(3, at), by_head).flatten(2)
        values = maps.read_values(mixed, start).flatten(0, 1)
        out.copy_(product(values, maps.value).view_as(out))
        out[torch.arange(len(out), device=at.device), at] += own.vector
        return
    for position, here in own.by_position():
        weight = pattern[..., position - start]
        mixed = torch.einsum("vkg,rvgi->rkvi", weight, by_head[here]).flatten(2)
        values = maps.read_values(mixed, start).flatten(0, 1)
        out[here] = product(values, maps.value).view(-1, keys, out.shape[-1])
        out[here, position - start].add_(own.vector[here])


def spread_over_keys(
    out: Float[Tensor, "rows positions width"],
    pattern: Tensor,
    by_head: Float[Tensor, "rows heads_d_head"],
    value: Float[Tensor, "width kv_heads_d_head"],
    own: JoiningRows,
    start: int,
) -> None:
    """Write what an attention layer pulls back of rows at one position yet, and their own.

    They go through every head's maps at that position, the pattern comes last.
    """
    kv_heads, _, group, _ = pattern.shape
    rows, width = len(by_head), len(value)
    by_head = by_head.view(rows, kv_heads, group, -1).transpose(0, 1).flatten(1, 2)
    heads = torch.bmm(by_head, value.view(width, kv_heads, -1).permute(1, 2, 0))
    heads = heads.view(kv_heads, rows, group, width).transpose(0, 1)
    heads = heads[:, :, 0] if group == 1 else heads.flatten(1, 2)  # the former copies nothing
    if batched(heads):
        at = on_device(own.position - start, pattern.device)
        weight = pattern.index_select(3, at).permute(3, 1, 0, 2).flatten(2)
        torch.bmm(weight, heads, out=out)
        out[torch.arange(rows, device=at.device), at] += own.vector
        return
    for position, here in own.by_position():
        weight = pattern[..., position - start].transpose(0, 1).flatten(1)
        torch.matmul(weight, heads[here], out=out[here])
        out[here, position - start].add_(own.vector[here])


def _mix(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    heads: Float[Tensor, "kv_heads group queries columns"],
) -> Float[Tensor, "kv_heads keys columns"]:
    """Sum over queries and over the heads that share a key; queries before a key do not count."""
    kv_heads, keys = pattern.shape[:2]
    if keys <= KEYS:
        return torch.bmm(pattern.flatten(2), heads.flatten(1, 2))
    mixed = heads.new_empty(kv_heads, keys, heads.shape[-1])
    if batched(heads):
        _mix_at_once(pattern, heads, mixed)
        return mixed
    for begin in range(0, keys, KEYS):
        end = begin + KEYS
        for head in range(kv_heads):
            weight = heads[head, :, begin:].flatten(0, 1).T
            mixed[head, begin:end] = product(pattern[head, begin:end, :, begin:].flatten(1), weight)
    return mixed


def _mix_at_once(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    heads: Float[Tensor, "kv_heads group queries columns"],
    mixed: Float[Tensor, "kv_heads keys columns"],
) -> None:
    """The same in batches of products, one a head that has keys, into `mixed`.

    Heads that share keys are added up one after the other, so that nothing is copied first; in
    bfloat16 together, since their sums would be rounded.
    """
    keys, group = pattern.shape[1:3]
    together = group if heads.itemsize < torch.float32.itemsize else 1
    step = max(KEYS, math.ceil(keys / BLOCKS_OF_KEYS))
    for begin in range(0, keys, step):
        block = mixed[:, begin : begin + step]
        for first in range(0, group, together):
            member = slice(first, first + together)
            weight = pattern[:, begin : begin + step, member, begin:].flatten(2)
            block.baddbmm_(weight, heads[:, member, begin:].flatten(1, 2), beta=int(first > 0))


def chunk_bytes(sizes: Sizes, rows: int) -> float:
    """Bytes of the chunks of a block that are swept side by side."""
    threads, chunk, most = side_by_side_sizes(sizes, rows)
    at_once = 0.0 if sizes.on_cpu else padded_bytes(sizes, chunk)
    size, pattern = sizes.itemsize, float(pattern_bytes(sizes).max())
    around = sizes.around or ((0, 0),) * sizes.layers
    widths = zip(sizes.heads, around, strict=True)
    largest = max(_widest(sizes, *layer) for layer in widths) * chunk * size
    if sizes.patterns_kept:
        largest += pattern if sizes.positions <= KEYS else 0.0  # cut to the chunk's positions
    else:
        making = sizes.d_model * chunk * size + pattern * max(3.0, (size + 4) / size)
        largest = max(largest + pattern, making)
    largest = max(largest, chunk * sizes.d_model * size + at_once)
    return threads * (largest + 2 * most * sizes.columns * float(sizes.entry))


def _widest(sizes: Sizes, layer: tuple[int, int, int, int], around: tuple[int, int]) -> float:
    """Numbers a row and position at the widest place of one layer's sweep."""
    _, width, kv_heads, kv_width = layer
    mixing = width / kv_heads if sizes.positions > KEYS else 0
    after = max(2 * width, width + kv_width + mixing, width + 2 * kv_width + sizes.d_model)
    beside = 5 * around[0] + around[1]  # values scaled, turned, mixed by taps, turned back
    whole = 3 if sizes.aside else 0  # what is read, pulled back and added up
    return sizes.d_model * (1 + whole + sizes.skips) + after + beside
