"""Sources pushed up the layers together; only the values that attention reads of them are kept.

The mirror of the sweep: sources of nearby positions go in one slab, cut off before the first of
them; inside it a source joins at the layer that first writes it, and its first attention layer is
passed at its one position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.attention.sources import Sources, positions_of, sources_of
from tracer.attribution.local_model import LinearLayer, LocalModel
from tracer.attribution.product import add_product, product
from tracer.attribution.sweep import KEYS
from tracer.attribution.targets import runs

SLAB, PART = 256, 64
"""Sources of a slab: inner products are so many columns wide. So many of them are pushed together,
from the first position that one of them stands at."""


@dataclass(frozen=True, eq=False)
class Slab:
    """Pushed sources, those first that are written lowest."""

    number: Int[np.ndarray, " sources"]
    """Which of all sources they are."""
    position: Int[np.ndarray, " sources"]
    begin: int
    """The first position that one of them stands at."""
    sources: Sources
    values: Sequence[Float[Tensor, "kv_heads live positions d_head"]]
    """Of each layer: what attention reads of those already written."""


def slabs(local: LocalModel, columns: Int[np.ndarray, " sources"], top: int) -> Iterator[Slab]:
    """Push sources through the layers up to `top`, slab by slab, those of late positions last."""
    position = positions_of(local, columns)
    order = np.argsort(position, kind="stable")
    for start in range(0, len(order), SLAB):
        chosen = order[start : start + SLAB]
        first = sources_of(local, columns[chosen]).first
        chosen = chosen[np.argsort(first, kind="stable")]
        yield _pushed(local, chosen, columns[chosen], int(position[chosen].min()), top)


def _pushed(
    local: LocalModel,
    number: Int[np.ndarray, " sources"],
    columns: Int[np.ndarray, " sources"],
    begin: int,
    top: int,
) -> Slab:
    sources = sources_of(local, columns)
    values = [
        _room(maps, int(np.searchsorted(sources.first, layer)), local.positions - begin)
        for layer, maps in enumerate(local.layers[: top + 1])
    ]
    position = positions_of(local, columns)
    order = np.argsort(position, kind="stable")
    for start in range(0, len(order), PART):
        part = np.sort(order[start : start + PART])
        _push(local, (sources.of(part), position[part]), part, begin, values)
    return Slab(number, position, begin, sources, values)


def _room(maps: LinearLayer, live: int, span: int) -> Float[Tensor, "kv_heads live span d_head"]:
    """Room for values; every source writes all of its own."""
    kv_heads = len(maps.transposed_pattern(0, 1))
    return maps.value.new_empty(kv_heads, live, span, maps.value.shape[1] // kv_heads)


def _push(
    local: LocalModel,
    pushed: tuple[Sources, Int[np.ndarray, " sources"]],
    places: Int[np.ndarray, " sources"],
    slab_begin: int,
    values: Sequence[Float[Tensor, "kv_heads live positions d_head"]],
) -> None:
    """Push some sources of a slab, those first that are written lowest, of them by position.

    Args:
        local: the local model.
        pushed: the sources, and where each stands.
        places: their numbers in the slab.
        slab_begin: the slab's first position.
        values: of each layer, room for what attention reads of the slab.
    """
    sources, position = pushed
    first, begin = sources.first, int(position.min())
    position = position - begin
    span, width = local.positions - begin, local.token_vectors.shape[1]
    stream = local.token_vectors.new_zeros(sources.count, span, width)
    sources.tokens.add_to(stream, begin)
    known = None
    for layer, room in enumerate(values):
        maps = local.layers[layer]
        stream = stream.to(maps.device)
        ends = [int(np.searchsorted(first, bound)) for bound in (layer - 1, layer)]
        read = _read(maps, stream, ends, position, known)
        _keep(room, read, places[: ends[1]], begin - slab_begin)
        if layer < len(values) - 1:
            pattern = maps.transposed_pattern(begin, local.positions)
            known = _attend(maps, pattern, stream, read, ends, position)
            sources.layers[layer].add_to(stream, begin)


@dataclass(frozen=True, eq=False)
class _Known:
    """What the next layer's attention reads of sources that just passed their first one."""

    values: Float[Tensor, "sources positions kv_heads_d_head"]
    """Of what that one added to the stream."""
    added: Float[Tensor, "sources d_model"]
    """What it added at the position of each, where the stream holds more."""


def _read(
    maps: LinearLayer,
    stream: Float[Tensor, "sources positions d_model"],
    ends: Sequence[int],
    position: Int[np.ndarray, " sources"],
    known: _Known | None,
) -> list[Float[Tensor, "some positions kv_heads_d_head"]]:
    """What attention reads, in parts that follow each other; the last reads at one position each.

    Where taps or factors stand before the pattern, all are one part.
    """
    dense, live = ends
    early = dense if known is None else dense - len(known.values)
    parts = []
    if early:
        found = product(stream[:early].flatten(0, 1), maps.value.T)
        parts.append(found.unflatten(0, (early, -1)))
    at = np.arange(early, live), position[early:live]
    here = stream[at]
    if known is not None:
        here[: dense - early] -= known.added
    own = product(here, maps.value.T)
    if known is not None:
        known.values[np.arange(dense - early), position[early:dense]] += own[: dense - early]
        parts.append(known.values)
    last = stream.new_zeros(live - dense, stream.shape[1], own.shape[1])
    last[np.arange(live - dense), position[dense:live]] = own[dense - early :]
    parts.append(last)
    if maps.around is None:
        return parts
    return [maps.around.values_on(torch.cat(parts), len(maps.skip_scale) - stream.shape[1])]


def _keep(
    room: Float[Tensor, "kv_heads live slab_positions d_head"],
    read: Sequence[Float[Tensor, "some positions kv_heads_d_head"]],
    places: Int[np.ndarray, " sources"],
    offset: int,
) -> None:
    """Write values in their places, which lie together for all sources written at one layer."""
    for part in read:
        by_key_head = part.unflatten(-1, (len(room), -1)).permute(2, 0, 1, 3)
        mine, places = places[: len(part)], places[len(part) :]
        for here in runs(mine - np.arange(len(mine))):
            room_here = room[:, int(mine[here.start]) :][:, : here.stop - here.start]
            room_here[:, :, :offset] = 0
            room_here[:, :, offset:] = by_key_head[:, here]


def _attend(
    maps: LinearLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    stream: Float[Tensor, "sources positions d_model"],
    read: Sequence[Float[Tensor, "some positions kv_heads_d_head"]],
    ends: Sequence[int],
    position: Int[np.ndarray, " sources"],
) -> _Known | None:
    """Take sources past one layer's attention and linear skip, in place.

    Args:
        maps: the layer.
        pattern: its pattern.
        stream: of all sources.
        read: what attention reads of those written, as `_read` says.
        ends: how many passed attention before, and how many with those that do now.
        position: where each source stands.

    Returns:
        What the layer above reads of those that do now, where virtual weights take them there.
    """
    dense, live = ends
    before = stream[:live].clone() if maps.parallel and maps.skip is not None else stream[:live]
    known = None
    if maps.around is not None:
        begin = len(maps.skip_scale) - stream.shape[1]
        mixed = _mixed(pattern, read).unflatten(0, (live, -1))
        _add(stream[:live], maps.read_heads(mixed, begin).flatten(0, 1), maps)
    else:
        if dense:
            _add(stream[:dense], _mixed(pattern, read[:-1]), maps)
        if live > dense:
            known = _first(maps, pattern, stream[dense:live], read[-1], position[dense:live])
    if maps.skip is not None:
        scale = maps.skip_scale[-stream.shape[1] :]
        skipped = product(before.flatten(0, 1), maps.skip.T).view_as(before)
        stream[:live] += skipped * scale
    return known


def _add(
    stream: Float[Tensor, "some positions d_model"],
    heads: Float[Tensor, "some_positions heads_d_head"],
    maps: LinearLayer,
) -> None:
    """Add what the output map makes of heads' outputs, in place."""
    found = add_product(stream.flatten(0, 1), heads, maps.output.T).view_as(stream)
    if found.data_ptr() != stream.data_ptr():
        stream.copy_(found)


def _first(
    maps: LinearLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    stream: Float[Tensor, "sources positions d_model"],
    values: Float[Tensor, "sources positions kv_heads_d_head"],
    position: Int[np.ndarray, " sources"],
) -> _Known | None:
    """Take sources at one position each past attention, in place."""
    at = np.arange(len(values)), position
    own = values[at].unflatten(1, (len(pattern), -1)).transpose(0, 1)
    before = stream[at]
    _spread(maps.output, pattern, stream, own, position)
    if maps.virtual is None:
        return None
    above = stream.new_zeros(*stream.shape[:2], maps.virtual.shape[1])
    _spread(maps.virtual, pattern, above, own, position)
    return _Known(above, stream[at] - before)


def _mixed(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    parts: Sequence[Float[Tensor, "some keys kv_heads_d_head"]],
) -> Float[Tensor, "sources_queries heads_d_head"]:
    kv_heads, _, group, queries = pattern.shape
    turned = [part.unflatten(-1, (kv_heads, -1)).permute(2, 1, 0, 3) for part in parts]
    by_head = torch.cat(turned, dim=2)
    sources, d_head = by_head.shape[2:]
    by_head = by_head.flatten(2)
    out = by_head.new_empty(sources, queries, kv_heads, group, d_head)
    for begin in range(0, queries, KEYS):  # keys after a query do not count
        end = min(begin + KEYS, queries)
        weight = pattern[:, :end, :, begin:end].flatten(2).transpose(1, 2)
        found = torch.bmm(weight, by_head[:, :end])
        found = found.view(kv_heads, group, end - begin, sources, d_head)
        out[:, begin:end] = found.permute(3, 2, 0, 1, 4)
    return out.flatten(2).flatten(0, 1)


def _spread(
    output: Float[Tensor, "heads_d_head width"],
    pattern: Float[Tensor, "kv_heads keys group queries"],
    out: Float[Tensor, "sources positions width"],
    own: Float[Tensor, "kv_heads sources d_head"],
    position: Int[np.ndarray, " sources"],
) -> None:
    """Add what heads make of sources at one position each, ascending: maps first, patterns last."""
    heads = through_heads(output, own, pattern.shape[2])
    for here in runs(position):
        at = int(position[here.start])
        weight = pattern[:, at, :, at:].flatten(0, 1).T
        out[here, at:].baddbmm_(weight.expand(here.stop - here.start, -1, -1), heads[here])


def through_heads(
    output: Float[Tensor, "heads_d_head width"],
    values: Float[Tensor, "kv_heads sources d_head"],
    group: int,
) -> Float[Tensor, "sources heads width"]:
    """What each head's part of a map makes of values at one position, `group` heads a key."""
    kv_heads, width = len(values), output.shape[1]
    maps = output.view(kv_heads, group, -1, width).permute(0, 2, 1, 3).flatten(2)
    return torch.bmm(values, maps).unflatten(2, (group, width)).transpose(0, 1).flatten(1, 2)
