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

SLAB = 256
"""Sources pushed together: inner products are so many columns wide."""


@dataclass(frozen=True, eq=False)
class Slab:
    """Pushed sources, those first that are written lowest."""

    number: Int[np.ndarray, " sources"]
    """Which of all sources they are."""
    begin: int
    """The first position that one of them stands at."""
    sources: Sources
    values: Sequence[Float[Tensor, "kv_heads live positions_d_head"]]
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
    first, position = sources.first, positions_of(local, columns) - begin
    span, width = local.positions - begin, local.token_vectors.shape[1]
    stream = local.token_vectors.new_zeros(len(columns), span, width)
    sources.tokens.add_to(stream, begin)
    values = []
    for layer in range(top + 1):
        maps = local.layers[layer]
        pattern = maps.transposed_pattern(begin, local.positions)
        dense, live = (int(np.searchsorted(first, bound)) for bound in (layer - 1, layer))
        fresh = slice(dense, live)
        read = stream.new_zeros(live, span, maps.value.shape[1])
        read[:dense] = product(stream[:dense].flatten(0, 1), maps.value.T).view_as(read[:dense])
        at = np.arange(dense, live), position[fresh]
        read[at] = product(stream[at], maps.value.T)
        if maps.around is not None:
            read, dense = maps.around.values_on(read, begin), live
        values.append(_by_key_head(read, len(pattern)))
        if layer < top:
            _attend(maps, pattern, stream, read, (dense, live), position)
            sources.layers[layer].add_to(stream, begin)
    return Slab(number, begin, sources, values)


def _by_key_head(
    values: Float[Tensor, "sources positions kv_heads_d_head"], kv_heads: int
) -> Float[Tensor, "kv_heads sources positions_d_head"]:
    return values.unflatten(-1, (kv_heads, -1)).permute(2, 0, 1, 3).flatten(2)


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
    order = np.argsort(position, kind="stable")
    output = maps.output.view(kv_heads, group, -1, stream.shape[-1])
    for here in runs(position[order]):
        rows, at = order[here], int(position[order[here.start]])
        read = values[on_device(rows, values.device), at].view(len(rows), kv_heads, -1)
        heads = torch.einsum("svi,vgid->svgd", read, output).flatten(1, 2)
        weight = pattern[:, at, :, at:].flatten(0, 1).T
        stream[on_device(rows, stream.device), at:] += torch.matmul(weight, heads)
