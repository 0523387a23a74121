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
from tracer.attribution.targets import on_device, runs

SLAB, PART = 256, 64
"""Sources of a slab: inner products are so many columns wide. So many of them are pushed together,
from the first position that one of them stands at."""


@dataclass(frozen=True, eq=False)
class Slab:
    """Pushed sources, those first that are written lowest."""

    number: Int[np.ndarray, " sources"]
    """Which of all sources they are."""
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
    order = np.argsort(positions_of(local, columns), kind="stable")
    for start in range(0, len(order), PART):
        part = np.sort(order[start : start + PART])
        _push(local, columns[part], part, begin, values)
    return Slab(number, begin, sources, values)


def _room(maps: LinearLayer, live: int, span: int) -> Float[Tensor, "kv_heads live span d_head"]:
    kv_heads = len(maps.transposed_pattern(0, 1))
    return maps.value.new_zeros(kv_heads, live, span, maps.value.shape[1] // kv_heads)


def _push(
    local: LocalModel,
    columns: Int[np.ndarray, " sources"],
    places: Int[np.ndarray, " sources"],
    slab_begin: int,
    values: Sequence[Float[Tensor, "kv_heads live positions d_head"]],
) -> None:
    """Push some sources of a slab, those first that are written lowest.

    Args:
        local: the local model.
        columns: the sources.
        places: where each stands in the slab.
        slab_begin: the slab's first position.
        values: of each layer, room for what attention reads of the slab.
    """
    sources, position = sources_of(local, columns), positions_of(local, columns)
    first, begin = sources.first, int(position.min())
    position = position - begin
    span, width = local.positions - begin, local.token_vectors.shape[1]
    stream = local.token_vectors.new_zeros(len(columns), span, width)
    sources.tokens.add_to(stream, begin)
    at_slab = on_device(places, stream.device)
    for layer, room in enumerate(values):
        maps = local.layers[layer]
        dense, live = (int(np.searchsorted(first, bound)) for bound in (layer - 1, layer))
        read = _read(maps, stream, (dense, live), position)
        if maps.around is not None:
            read, dense = maps.around.values_on(read, begin), live
        room[:, at_slab[:live], begin - slab_begin :] = _by_key_head(read, len(room))
        if layer < len(values) - 1:
            pattern = maps.transposed_pattern(begin, local.positions)
            _attend(maps, pattern, stream, read, (dense, live), position)
            sources.layers[layer].add_to(stream, begin)


def _read(
    maps: LinearLayer,
    stream: Float[Tensor, "sources positions d_model"],
    ends: tuple[int, int],
    position: Int[np.ndarray, " sources"],
) -> Float[Tensor, "live positions kv_heads_d_head"]:
    """What attention reads: of those that passed one before everywhere, else at one position."""
    dense, live = ends
    read = stream.new_zeros(live, stream.shape[1], maps.value.shape[1])
    read[:dense] = product(stream[:dense].flatten(0, 1), maps.value.T).view_as(read[:dense])
    at = np.arange(dense, live), position[dense:live]
    read[at] = product(stream[at], maps.value.T)
    return read


def _by_key_head(
    values: Float[Tensor, "sources positions kv_heads_d_head"], kv_heads: int
) -> Float[Tensor, "kv_heads sources positions d_head"]:
    return values.unflatten(-1, (kv_heads, -1)).permute(2, 0, 1, 3)


def _attend(
    maps: LinearLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    stream: Float[Tensor, "sources positions d_model"],
    values: Float[Tensor, "live positions kv_heads_d_head"],
    ends: tuple[int, int],
    position: Int[np.ndarray, " sources"],
) -> None:
    """Take sources past one layer's attention and linear skip, in place.

    Args:
        maps: the layer.
        pattern: its pattern.
        stream: of all sources.
        values: what attention reads of those written.
        ends: how many passed attention before, and how many with those that do now.
        position: where each source stands.
    """
    dense, live = ends
    before = stream[:live].clone() if maps.parallel and maps.skip is not None else stream[:live]
    if dense:
        mixed = _mixed(pattern, values[:dense])
        if maps.around is not None:
            begin = len(maps.skip_scale) - stream.shape[1]
            mixed = maps.read_heads(mixed.unflatten(0, (dense, -1)), begin).flatten(0, 1)
        old = stream[:dense].flatten(0, 1)
        stream[:dense] = add_product(old, mixed, maps.output.T).view_as(stream[:dense])
    if live > dense:
        _spread(maps, pattern, stream[dense:live], values[dense:live], position[dense:live])
    if maps.skip is not None:
        scale = maps.skip_scale[-stream.shape[1] :]
        skipped = product(before.flatten(0, 1), maps.skip.T).view_as(before)
        stream[:live] += skipped * scale


def _mixed(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    values: Float[Tensor, "sources keys kv_heads_d_head"],
) -> Float[Tensor, "sources_queries heads_d_head"]:
    kv_heads, keys, group, queries = pattern.shape
    sources, d_head = len(values), values.shape[-1] // kv_heads
    by_head = values.view(sources, keys, kv_heads, d_head).permute(2, 1, 0, 3).flatten(2)
    out = values.new_empty(sources, queries, kv_heads, group, d_head)
    for begin in range(0, queries, KEYS):  # keys after a query do not count
        end = min(begin + KEYS, queries)
        weight = pattern[:, :end, :, begin:end].flatten(2).transpose(1, 2)
        found = torch.bmm(weight, by_head[:, :end])
        found = found.view(kv_heads, group, end - begin, sources, d_head)
        out[:, begin:end] = found.permute(3, 2, 0, 1, 4)
    return out.flatten(2).flatten(0, 1)


def _spread(
    maps: LinearLayer,
    pattern: Float[Tensor, "kv_heads keys group queries"],
    stream: Float[Tensor, "sources positions d_model"],
    values: Float[Tensor, "sources positions kv_heads_d_head"],
    position: Int[np.ndarray, " sources"],
) -> None:
    """Add what attention makes of sources at one position each: through heads, patterns last."""
    kv_heads, _, group, _ = pattern.shape
    sources, width = len(values), stream.shape[-1]
    own = values[np.arange(sources), position].view(sources, kv_heads, -1).transpose(0, 1)
    output = maps.output.view(kv_heads, group, -1, width).permute(0, 2, 1, 3).flatten(2)
    heads = torch.bmm(own, output).view(kv_heads, sources, group, width)
    heads = heads.transpose(0, 1).flatten(1, 2)
    order = np.argsort(position, kind="stable")
    for here in runs(position[order]):
        rows, at = on_device(order[here], stream.device), int(position[order[here.start]])
        weight = pattern[:, at, :, at:].flatten(0, 1).T
        stream[rows, at:] += torch.matmul(weight, heads[rows])
