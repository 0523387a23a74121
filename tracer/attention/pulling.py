"""Rows pulled down the layers together, with heads apart: what each head's values are worth.

The sweep's joins and cuts (tracer/attribution/sweep.py), but gradients are handed out as every
layer has mixed them, before the heads that share a key are added up, and only chosen sources are
scored.
"""

from collections.abc import Callable, Iterator
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
    heads_of,
    skip_back,
    spread_around,
    spread_over_keys,
)
from tracer.attribution.targets import TargetRows

ROWS, SPAN = 32, 2048
"""Rows of a chunk at least, and row-positions it may hold beyond."""


@dataclass(frozen=True, eq=False)
class AtLayer:
    """What a chunk's rows weigh one layer with, from position `begin` on."""

    layer: int
    begin: int
    above: Float[Tensor, "rows positions d_model"]
    """The stream above the layer: what its MLP writes is scored with it."""
    mixed: Float[Tensor, "kv_heads rows group positions d_head"]
    """Values, head by head, of all rows that pass this layer's attention."""


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
    local: LocalModel, rows: TargetRows, begin: int, visit: Callable[[AtLayer], None]
) -> Float[Tensor, "rows positions d_model"]:
    """Pull rows, sorted by site from the top, down to the bottom of the stream.

    Args:
        local: a plain local model.
        rows: one chunk of rows.
        begin: the first position anybody asks for.
        visit: called at every layer from the top.

    Returns:
        The gradients of the stream entering layer 0, from `begin` on.
    """
    end = int(rows.position.max()) + 1
    sites = rows.site.tolist()
    gradients = rows.vector.new_zeros(len(rows), end - begin, rows.vector.shape[1])
    dense = 0
    for layer in range(top_layer(max(sites)), -1, -1):
        above = _joining(rows, sites, dense, stream_number(layer + 1))
        between = _joining(rows, sites, dense + len(above), stream_number(layer, between=True))
        joined = dense + len(above)
        for position, here in above.by_position():
            gradients[dense:joined][here, position - begin] = above.vector[here]
        seen = gradients[:joined].clone()  # what follows is done in place
        mixed = _past_layer(local.layers[layer], gradients, begin, dense, (above, between))
        visit(AtLayer(layer, begin, seen, mixed))
        dense = joined + len(between)
    last = _joining(rows, sites, dense, stream_number(0))
    for position, here in last.by_position():
        gradients[dense:][here, position - begin] = last.vector[here]
    return gradients


def _joining(rows: TargetRows, sites: list[int], joined: int, site: int) -> JoiningRows:
    end = joined + sites[joined:].count(site)
    return JoiningRows(rows.vector[joined:end], rows.position[joined:end])


def _past_layer(
    maps: LinearLayer,
    gradients: Float[Tensor, "rows positions d_model"],
    begin: int,
    dense: int,
    joining: tuple[JoiningRows, JoiningRows],
) -> Float[Tensor, "kv_heads rows group positions d_head"]:
    """Pull gradients back through one layer's skip and attention, in place.

    Args:
        maps: the layer.
        gradients: of all rows; those of the rows joining are written here.
        begin: position of the first gradient.
        dense: how many rows passed attention before.
        joining: rows that read above the layer's MLP, and between it and attention.

    Returns:
        What each head's values are worth, of the rows that have joined by now.
    """
    above, between = joining
    span = gradients.shape[1]
    pattern = maps.transposed_pattern(begin, begin + span)
    below, own = skip_back(maps, gradients[:dense], above, begin)
    own = _both(own, between)
    read, reading = (gradients[:dense], _both(above, between)) if maps.parallel else (below, own)
    kv_heads, _, group, _ = pattern.shape
    heads = heads_of(maps, reading)
    d_head = heads.shape[1] // (kv_heads * group)
    mixed = heads.new_empty(kv_heads, dense + len(own), group, span, d_head)
    if dense:
        back = product(read.flatten(0, 1), maps.output).view(dense, span, -1)
        _mix(pattern, maps.read_heads(back, begin), mixed)
        values = maps.read_values(mixed[:, :dense].sum(2).permute(1, 2, 0, 3).flatten(2), begin)
        pulled = product(values.flatten(0, 1), maps.value).view_as(below)
        torch.add(below, pulled, out=gradients[:dense])
    if len(own):
        _outer(pattern, heads, reading, begin, mixed[:, dense:])
        room = gradients[dense : dense + len(own)]
        if maps.around is None or maps.around.bare_values:
            spread_over_keys(room, pattern, heads, maps.value, own, begin)
        else:
            spread_around(room, pattern, heads, maps, own, begin)
    return mixed


def _both(first: JoiningRows, second: JoiningRows) -> JoiningRows:
    return JoiningRows(
        torch.cat([first.vector, second.vector]), np.concatenate([first.position, second.position])
    )


def _mix(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    heads: Float[Tensor, "rows queries heads_d_head"],
    out: Float[Tensor, "kv_heads rows group keys d_head"],
) -> None:
    """Sum over queries, head by head; queries before a key do not count."""
    kv_heads, keys, group, queries = pattern.shape
    rows = len(heads)
    by_head = heads.view(rows, queries, kv_heads, group, -1).permute(2, 3, 1, 0, 4)
    by_head = by_head.reshape(kv_heads * group, queries, -1)
    weight = pattern.transpose(1, 2).reshape(kv_heads * group, keys, queries)
    for begin in range(0, keys, KEYS):
        found = torch.bmm(weight[:, begin : begin + KEYS, begin:], by_head[:, begin:])
        found = found.view(kv_heads, group, found.shape[1], rows, -1)
        out[:, :rows, :, begin : begin + KEYS] = found.permute(0, 3, 1, 2, 4)


def _outer(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    heads: Float[Tensor, "rows heads_d_head"],
    reading: JoiningRows,
    begin: int,
    out: Float[Tensor, "kv_heads rows group keys d_head"],
) -> None:
    """The same of rows at one position each."""
    kv_heads, _, group, _ = pattern.shape
    by_head = heads.view(len(heads), kv_heads, group, -1).transpose(0, 1)
    for position, here in reading.by_position():
        weight = pattern[..., position - begin].transpose(1, 2)
        out[:, here] = by_head[:, here, :, None] * weight[:, None, ..., None]
