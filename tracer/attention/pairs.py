"""Pairs of nodes behind a head's scores, formed among the strongest of both sides."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from graphs.attention_tables import COLUMNS, LEFT
from tracer.attention.explained import Explained, pulled_to_stream
from tracer.attention.marginals import Side, entering
from tracer.attention.queries_keys import QueryKeyMap, Reached
from tracer.attention.sources import LEAVES, Sources, Writes, constant_sources, sources_of
from tracer.attention.spot import Spot

LEAF = "constant"
ENTRIES = 1 << 25
"""Numbers of gradients held at once while pairs are formed."""


def _names(about: Explained) -> list[str]:
    return [*about.ids, *(f"{LEAF}.{leaf}" for leaf in LEAVES)]


def pairs(
    about: Explained,
    place: QueryKeyMap,
    reached: Reached,
    spot: Spot,
    sides: tuple[Side, Side],
    top: int,
) -> pa.Table:
    """Pairs of the strongest nodes of both sides; what is missing comes from their marginals."""
    names = _names(about)
    weights = [torch.cat([side.sources, side.constants.to(side.sources)]) for side in sides]
    chosen = [strongest(weight, top) for weight in weights]
    every = sorted({*chosen[0], *chosen[1]})
    vectors = _vectors(about, place, reached, spot, every)
    at = [[every.index(column) for column in side] for side in chosen]
    table = spot.scores.scaling * vectors[0][at[0]] @ vectors[1][at[1]].T
    rows = weights[0][chosen[0]].to(table) - table.sum(1)
    columns = weights[1][chosen[1]].to(table) - table.sum(0)
    left = spot.explained - spot.sink - float(table.sum() + rows.sum() + columns.sum())
    last = torch.cat([columns, columns.new_tensor([left])])
    whole = torch.cat([torch.cat([table, rows[:, None]], 1), last[None]])
    queries, keys = ([names[column] for column in side] + [LEFT] for side in chosen)
    found = [
        (query, key, float(whole[i, j]))
        for i, query in enumerate(queries)
        for j, key in enumerate(keys)
    ]
    found.sort(key=lambda row: (LEFT in row, -abs(row[2])))
    kinds = list(COLUMNS["attention_pairs"].items())[1:]
    parts = zip(kinds, zip(*found, strict=True), strict=True)
    return pa.table({name: pa.array(list(part), kind) for (name, kind), part in parts})


def strongest(weight: Float[Tensor, " nodes"], top: int) -> list[int]:
    """Numbers of the largest weights, largest first, without zeros."""
    found: list[int] = weight.abs().topk(min(top, len(weight))).indices.tolist()
    return [column for column in found if float(weight[column]) != 0]


def _vectors(
    about: Explained,
    place: QueryKeyMap,
    reached: Reached,
    spot: Spot,
    columns: Sequence[int],
) -> tuple[Float[Tensor, "nodes d_head"], Float[Tensor, "nodes d_head"]]:
    """What nodes make of the query, and of the keys under the spot's weights."""
    scores, key_head = spot.scores, spot.scores.key_head(spot.head)
    stream = entering(about, _sources(about, columns), spot.layer)
    width = scores.queries.shape[-1]
    step = max(1, ENTRIES // stream[0].numel())
    found = [stream.new_zeros(len(columns), width) for _ in range(2)]
    for start in range(0, width, step):
        parts = range(start, min(start + step, width))
        queries = scores.queries.new_zeros(len(parts), *scores.queries.shape)
        keys = scores.keys.new_zeros(len(parts), *scores.keys.shape)
        for row, part in enumerate(parts):
            queries[row, spot.head, spot.query, part] = 1
            keys[row, key_head, :, part] = spot.weights
        for side, pulled in enumerate((reached.pulled(queries, None), reached.pulled(None, keys))):
            gradients, bias = pulled_to_stream(about, spot.layer, pulled)
            own = torch.einsum("npd,cpd->nc", stream, gradients)
            own += _own(about, columns)[:, None] * bias
            found[side][:, start : start + len(parts)] = own
    zero = place.scores(torch.zeros_like(place.hidden)).scores
    mine = _own(about, columns)[:, None]
    found[0] += mine * zero.queries[spot.head, spot.query].detach()
    found[1] += mine * (spot.weights @ zero.keys[key_head]).detach()
    return found[0], found[1]


def _own(about: Explained, columns: Sequence[int]) -> Float[Tensor, " nodes"]:
    """1 for the leaf of the biases, which takes those of the head as well."""
    biases = about.local.columns + LEAVES.index("biases")
    like = about.local.token_vectors
    return like.new_tensor([float(column == biases) for column in columns])


def _sources(about: Explained, columns: Sequence[int]) -> Sources:
    """Nodes by column, constants after them."""
    nodes = np.array([one for one in columns if one < about.local.columns], dtype=np.int64)
    leaves = [one - about.local.columns for one in columns if one >= about.local.columns]
    found = sources_of(about.local, nodes)
    if not leaves:
        return found
    constants = constant_sources(about.local)

    def both(one: Writes, other: Writes) -> Writes:
        kept = np.flatnonzero(np.isin(other.source, leaves))
        place = np.array([leaves.index(leaf) for leaf in other.source[kept]], dtype=np.int64)
        return Writes(
            np.concatenate([one.source, found.count + place]),
            np.concatenate([one.position, other.position[kept]]),
            torch.cat([one.vector, other.vector[torch.from_numpy(kept).to(other.vector.device)]]),
        )

    return Sources(
        found.count + len(leaves),
        both(found.tokens, constants.tokens),
        [both(*pair) for pair in zip(found.layers, constants.layers, strict=True)],
    )
