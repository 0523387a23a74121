"""Rows pulled down the layers together, with heads apart: what each head's values are worth.

The sweep's joins and cuts (tracer/attribution/sweep.py), but gradients are handed out as every
layer has mixed them, before the heads that share a key are added up, and only chosen sources are
scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models.sites import stream_number, top_layer
from tracer.attribution.local_model import LinearLayer, LocalModel
from tracer.attribution.product import product
from tracer.attribution.scoring import JoiningRows
from tracer.attribution.sweep import (
    KEYS,
    beside_and_into,
    heads_of,
    joining_rows,
    projected_below,
    spread_around,
    spread_over_keys,
)
from tracer.attribution.targets import TargetRows

ROWS, SPAN = 32, 3072
"""Rows of a chunk at least, and row-positions it may hold beyond."""


@dataclass(frozen=True, eq=False)
class Above:
    """What a chunk's rows weigh the stream above one layer with, from position `begin` on.

    What the layer's MLP writes is scored with it; true until the next layer is passed.
    """

    layer: int
    begin: int
    gradient: Float[Tensor, "rows positions d_model"]


@dataclass(frozen=True, eq=False)
class Mixed:
    """What they weigh one layer's values with, head by head: all rows that pass its attention."""

    layer: int
    begin: int
    worth: Float[Tensor, "kv_heads group positions rows d_head"]


@dataclass(frozen=True, eq=False)
class Unmixed:
    """What they weigh one layer's attention output with, before its heads part: at the floor."""

    layer: int
    begin: int
    gradient: Float[Tensor, "dense positions d_model"]
    """Of rows that passed attention above."""
    joining: JoiningRows
    """Of those that pass it here first, which follow."""


def chunks(rows: TargetRows) -> Iterator[Int[np.ndarray, " chunk"]]:
    """Row numbers by position, cut into chunks, in each sorted by site from the top."""
    order = np.argsort(rows.position, kind="stable")
    begin = 0
    for end, row in enumerate(order):
        size = end - begin
        if size >= ROWS and (size + 1) * (int(rows.position[row]) + 1) > SPAN:
            yield _by_site(rows, order[begin:end])
            begin = end
    if len(order):
        yield _by_site(rows, order[begin:])


def _by_site(rows: TargetRows, chunk: np.ndarray) -> np.ndarray:
    found: np.ndarray = chunk[np.argsort(-rows.site[chunk], kind="stable")]
    return found


def pull(
    local: LocalModel, rows: TargetRows, begin: int, floor: int, mixed: bool = True
) -> Iterator[Above | Mixed | Unmixed]:
    """Pull rows, sorted by site from the top, down to what the lowest source passes.

    Args:
        local: a plain local model.
        rows: one chunk of rows.
        begin: the first position anybody asks for.
        floor: the lowest layer whose attention a source passes.
        mixed: whether heads part at the floor too.

    Yields:
        At every layer from the top the stream above it and the values in it. Last, "above" the
        layer below `floor`, the stream as it stays beside the attention of `floor`: what sources
        weigh there is this and what the heads of `floor` carry.
    """
    end = int(rows.position.max()) + 1
    sites = rows.site.tolist()
    gradients = rows.vector.new_zeros(len(rows), end - begin, rows.vector.shape[1])
    pulled = _Pulled(local, floor, begin, gradients)
    for layer in range(top_layer(max(sites)), floor - 1, -1):
        there = local.layers[layer].device
        rows, gradients = rows.passing(there), gradients.to(there)
        pulled.gradients = gradients
        above = joining_rows(rows, sites, pulled.dense, stream_number(layer + 1))
        joined = pulled.dense + len(above)
        between = joining_rows(rows, sites, joined, stream_number(layer, between=True))
        _write(above, gradients[pulled.dense : joined], begin)
        yield Above(layer, begin, gradients[:joined])
        if layer > floor or mixed:
            yield Mixed(layer, begin, _past_layer(pulled, layer, above, between))
        else:
            yield _past_floor(pulled, above, between)
    last = joining_rows(rows, sites, pulled.dense, stream_number(floor))
    _write(last, gradients[pulled.dense :], begin)
    yield Above(floor - 1, begin, gradients[: pulled.dense + len(last)])


@dataclass(eq=False)
class _Pulled:
    """How far a chunk has come."""

    local: LocalModel
    floor: int
    begin: int
    gradients: Float[Tensor, "rows positions d_model"]
    dense: int = 0
    """How many rows have passed attention."""
    projected: Float[Tensor, "rows positions heads_d_head"] | None = None
    """What the next output map makes of the last of them, where known."""


def _write(joining: JoiningRows, gradients: Tensor, begin: int) -> None:
    for position, here in joining.by_position():
        gradients[here, position - begin] = joining.vector[here]


def _past_floor(pulled: _Pulled, above: JoiningRows, between: JoiningRows) -> Unmixed:
    """Leave the floor's attention to the caller; bring gradients beside it, in place."""
    gradients, begin, dense = pulled.gradients, pulled.begin, pulled.dense
    maps = pulled.local.layers[pulled.floor]
    beside, into = beside_and_into(maps, gradients[:dense], (above, between), begin)
    (below, own), (read, reading) = beside, into
    read = read.clone() if maps.parallel else read  # which is written over
    gradients[:dense] = below
    _write(own, gradients[dense : dense + len(own)], begin)
    pulled.dense = dense + len(own)
    return Unmixed(pulled.floor, begin, read, reading)


def _past_layer(
    pulled: _Pulled, layer: int, above: JoiningRows, between: JoiningRows
) -> Float[Tensor, "kv_heads group positions rows d_head"]:
    """Pull gradients back through one layer's skip and attention, in place.

    Args:
        pulled: how far the chunk has come; brought up to date.
        layer: the layer. At the floor, what attention pulls back stays out of the gradients.
        above: rows joining that read above the layer's MLP; written in the gradients already.
        between: those that read between it and attention.

    Returns:
        What each head's values are worth, of the rows that have joined by now.
    """
    gradients, begin, dense = pulled.gradients, pulled.begin, pulled.dense
    maps, span = pulled.local.layers[layer], gradients.shape[1]
    pattern = maps.transposed_pattern(begin, begin + span)
    beside, into = beside_and_into(maps, gradients[:dense], (above, between), begin)
    (below, own), (read, reading) = beside, into
    heads = heads_of(maps, reading)
    kv_heads, _, group, _ = pattern.shape
    mixed = heads.new_empty(
        kv_heads, group, span, dense + len(own), heads.shape[1] // (kv_heads * group)
    )
    if dense:
        _mix(pattern, _by_head(pulled, maps, read, pattern), mixed)
    if len(own):
        _outer(pattern, heads, reading, begin, mixed[:, :, :, dense:])
    pulled.dense, pulled.projected = dense + len(own), None
    room = gradients[dense : pulled.dense]
    if layer == pulled.floor:
        gradients[:dense] = below
        _write(own, room, begin)
        return mixed
    if dense:
        values = mixed[:, :, :, :dense].sum(1).permute(2, 1, 0, 3).flatten(2)
        values = maps.read_values(values, begin).flatten(0, 1)
        torch.add(below, product(values, maps.value).view_as(below), out=gradients[:dense])
    if not len(own):
        return mixed
    if maps.around is None or maps.around.bare_values:
        spread_over_keys(room, pattern, heads, maps.value, own, begin)
        pulled.projected = projected_below(pulled.local, layer, pattern, heads, (own, begin))
    else:
        spread_around(room, pattern, heads, maps, own, begin)
    return mixed


def _by_head(
    pulled: _Pulled,
    maps: LinearLayer,
    read: Float[Tensor, "rows queries d_model"],
    pattern: Float[Tensor, "kv_heads keys group queries"],
) -> Float[Tensor, "heads queries rows_d_head"]:
    """What rows weigh heads' outputs with; of the last it may be known already."""
    kv_heads, _, group, queries = pattern.shape
    parts = [] if pulled.projected is None else [pulled.projected]
    early = len(read) - sum(len(part) for part in parts)
    if early:
        parts.insert(0, product(read[:early].flatten(0, 1), maps.output).unflatten(0, (early, -1)))
    parts = [maps.read_heads(part, pulled.begin) for part in parts]
    turned = [part.unflatten(-1, (kv_heads * group, -1)).permute(2, 1, 0, 3) for part in parts]
    whole = torch.cat(turned, dim=2) if len(turned) > 1 else turned[0]
    return whole.reshape(kv_heads * group, queries, -1)


def _mix(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    by_head: Float[Tensor, "heads queries rows_d_head"],
    out: Float[Tensor, "kv_heads group keys rows d_head"],
) -> None:
    """Sum over queries, head by head; queries before a key do not count."""
    kv_heads, keys, group, queries = pattern.shape
    weight = pattern.transpose(1, 2).reshape(kv_heads * group, keys, queries)
    room = out.flatten(0, 1).flatten(2)[..., : by_head.shape[2]]
    for begin in range(0, keys, KEYS):
        some = slice(begin, begin + KEYS)
        torch.bmm(weight[:, some, begin:], by_head[:, begin:], out=room[:, some])


def _outer(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    heads: Float[Tensor, "rows heads_d_head"],
    reading: JoiningRows,
    begin: int,
    out: Float[Tensor, "kv_heads group keys rows d_head"],
) -> None:
    """The same of rows at one position each."""
    kv_heads, _, group, _ = pattern.shape
    by_head = heads.view(len(heads), kv_heads, group, -1).transpose(0, 1)
    for position, here in reading.by_position():
        weight = pattern[..., position - begin].transpose(1, 2)
        heads_here = by_head[:, here].transpose(1, 2)[:, :, None]
        out[:, :, :, here] = heads_here * weight[..., None, None]
