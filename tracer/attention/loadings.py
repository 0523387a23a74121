"""Head loadings: every edge split exactly over the heads of every layer it passes.

At an attention layer l that an edge passes, what the source has written below l either goes through
a head, or stays at its position; what a cross-layer source writes at l or above never passes it:
Σ heads + stay + above = edge, at every layer. Each layer is a full split of its own: loadings are
never added across layers (`chains.py` follows an edge through several).

Source: Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from replacement_models.sites import top_layer
from tracer.attention.floor import carried
from tracer.attention.pulling import Above, Mixed, Unmixed, chunks, pull
from tracer.attention.pushing import SLAB, Slab, slabs
from tracer.attention.sources import Writes, positions_of
from tracer.attribution.indices import on_device
from tracer.attribution.local_model import LocalModel
from tracer.attribution.product import product, scores_product, summed_in
from tracer.attribution.targets import TargetRows, runs

HELD = 1 << 29
"""Bytes of pushed values held at once: sources beyond go in another round, with all rows again."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Edges as numbers of sources and rows."""

    source: Int[np.ndarray, " edges"]
    target: Int[np.ndarray, " edges"]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, eq=False)
class Loadings:
    """Some edges, split at every layer."""

    edge: Int[np.ndarray, " edges"]
    """Their numbers."""
    heads: Float[np.ndarray, "edges layers heads"]
    written: Float[np.ndarray, "edges layers+1"]
    """Part of the edge that is written below layer 0, then at each layer."""

    @property
    def weight(self) -> Float[np.ndarray, " edges"]:
        """The edges themselves: all that is written."""
        return self.written.sum(1)

    @property
    def below(self) -> Float[np.ndarray, "edges layers"]:
        """What of each edge is written before each layer's attention."""
        return self.written[:, :-1].cumsum(1)

    @property
    def stay(self) -> Float[np.ndarray, "edges layers"]:
        """What passes each layer beside its heads."""
        return self.below - self.heads.sum(2)


def loadings(
    local: LocalModel,
    columns: Int[np.ndarray, " sources"],
    rows: TargetRows,
    pairs: Pairs,
    heads: int,
) -> Iterator[Loadings]:
    """Split edges over heads, some at a time; memory does not grow with their number.

    Args:
        local: a plain local model.
        columns: the sources.
        rows: the targets.
        pairs: the edges, by numbers of `columns` and `rows`.
        heads: the most that a layer has.
    """
    top = top_layer(int(rows.site.max()))
    for chosen in _rounds(local, columns):
        held = list(slabs(local, columns[chosen], top))
        held = [_renumbered(slab, chosen) for slab in held]
        mine = np.isin(pairs.source, chosen)
        for chunk in chunks(rows):
            edges = np.flatnonzero(mine & np.isin(pairs.target, chunk))
            if len(edges):  # rows that nobody asks about may stand before every source
                asked = chunk[np.isin(chunk, pairs.target[edges])]
                yield _of_chunk(local, (rows, asked), held, (pairs, edges), heads)


def _rounds(
    local: LocalModel, columns: Int[np.ndarray, " sources"]
) -> Iterator[Int[np.ndarray, " chosen"]]:
    """Numbers of sources by position, as many as may be held at once."""
    order = np.argsort(positions_of(local, columns), kind="stable")
    layer_values = sum(layer.value.shape[1] for layer in local.layers)
    bytes_each = local.positions * layer_values * local.token_vectors.element_size()
    step = max(SLAB, HELD // bytes_each // SLAB * SLAB)
    for start in range(0, len(order), step):
        yield order[start : start + step]


def _renumbered(slab: Slab, chosen: Int[np.ndarray, " chosen"]) -> Slab:
    return replace(slab, number=chosen[slab.number])


def _of_chunk(
    local: LocalModel,
    into: tuple[TargetRows, Int[np.ndarray, " chunk"]],
    held: Sequence[Slab],
    wanted: tuple[Pairs, Int[np.ndarray, " edges"]],
    heads: int,
) -> Loadings:
    """Split the edges into one chunk of rows."""
    (rows, chunk), (pairs, edges) = into, wanted
    split = [slab for slab in held if np.isin(slab.number, pairs.source[edges]).any()]
    within = [_of_slab(slab, chunk, pairs, edges) for slab in split]
    kind = np.float64 if rows.vector.dtype == torch.float64 else np.float32
    found = Loadings(
        edges,
        np.zeros((len(edges), len(local.layers), heads), kind),
        np.zeros((len(edges), len(local.layers) + 1), np.float64),
    )

    begin = min(slab.begin for slab in split)
    floor = 1 + min(int(mine.first.min()) for mine in within)
    few = _few(local, split, floor)
    for at in pull(local, rows[chunk], begin, floor, mixed=not few):
        for slab, mine in zip(split, within, strict=True):
            if isinstance(at, Mixed):
                _load(slab, at, mine, found.heads[:, at.layer])
            elif isinstance(at, Unmixed):
                _load_few(local, slab, at, mine, found.heads[:, at.layer])
            else:
                _score(slab.sources.writes(at.layer), at, mine, found.written[:, at.layer + 1])
    if floor < len(local.layers):
        found.written[:, floor] += found.heads[:, floor].sum(1)
    return found


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges of one slab into one chunk, by numbers inside both."""

    edge: Int[np.ndarray, " edges"]
    """Rows of the chunk's `Loadings`."""
    source: Int[np.ndarray, " edges"]
    target: Int[np.ndarray, " edges"]
    first: Int[np.ndarray, " edges"]
    """The layer at which each one's source is first written."""


def _of_slab(
    slab: Slab, chunk: np.ndarray, pairs: Pairs, edges: Int[np.ndarray, " edges"]
) -> _Edges:
    here = np.flatnonzero(np.isin(pairs.source[edges], slab.number))
    source = _place(slab.number, pairs.source[edges[here]])
    target = _place(chunk, pairs.target[edges[here]])
    return _Edges(here, source, target, slab.sources.first[source])


def _place(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted number stands among `numbers`."""
    order = np.argsort(numbers)
    found: np.ndarray = order[np.searchsorted(numbers, wanted, sorter=order)]
    return found


def _score(writes: Writes, at: Above, edges: _Edges, out: np.ndarray) -> None:
    """Add to every edge what its source writes at one layer, for rows above it."""
    rows, span = at.gradient.shape[:2]
    where = writes.position - at.begin
    inside = np.flatnonzero((where >= 0) & (where < span))
    if not rows or not len(inside):
        return
    order = inside[np.argsort(where[inside], kind="stable")]
    scores = at.gradient.new_zeros(
        int(edges.source.max()) + 1, rows, dtype=summed_in(at.gradient.dtype)
    )
    for here in runs(where[order]):
        some = order[here]
        kept = some[writes.source[some] < len(scores)]
        vectors = writes.vector[on_device(kept, writes.vector.device)]
        found = scores_product(vectors, at.gradient[:, int(where[some[0]])])
        scores[on_device(writes.source[kept], found.device)] += found
    reached = np.flatnonzero(edges.target < rows)
    values = scores[on_device(edges.source[reached], scores.device),
                    on_device(edges.target[reached], scores.device)]  # fmt: skip
    out[edges.edge[reached]] += values.double().cpu().numpy()


def _load(slab: Slab, at: Mixed, edges: _Edges, out: np.ndarray) -> None:
    """Add to every edge what each head of a layer carries of it."""
    values = slab.values[at.layer]
    rows, live = at.worth.shape[3], values.shape[1]
    reached = np.flatnonzero((edges.target < rows) & (edges.source < live))
    if not len(reached):
        return
    kv_heads, group, positions, _, d_head = at.worth.shape
    used = slice(int(edges.source[reached].min()), int(edges.source[reached].max()) + 1)
    span = min(at.begin + positions - slab.begin, values.shape[2])
    if span <= 0:
        return
    offset = slab.begin - at.begin
    device = values.device
    target = on_device(edges.target[reached], device)
    source = on_device(edges.source[reached] - used.start, device)
    for key_head in range(kv_heads):
        worth = at.worth[key_head, :, offset : offset + span].permute(2, 0, 1, 3)
        worth = worth.flatten(2).flatten(0, 1)
        read = values[key_head, used].flatten(1)[:, : span * d_head]
        found = product(worth, read).view(rows, group, -1)
        picked = found[target, :, source].to(summed_in(found.dtype))
        out[edges.edge[reached], key_head * group : (key_head + 1) * group] += picked.cpu().numpy()


def _few(local: LocalModel, split: Sequence[Slab], layer: int) -> bool:
    """Whether applying a layer's heads to the sources that it reads costs less than to rows."""
    if layer >= len(local.layers) or local.layers[layer].around is not None:
        return False
    d_head = split[0].values[layer].shape[3]
    return sum(len(_at_one_position(slab, layer)) for slab in split) <= d_head


def _at_one_position(slab: Slab, layer: int) -> range:
    """The sources that pass their first attention at a layer, by position."""
    ends = np.searchsorted(slab.sources.first, [layer - 1, layer])
    return range(int(ends[0]), int(ends[1]))


def _load_few(local: LocalModel, slab: Slab, at: Unmixed, edges: _Edges, out: np.ndarray) -> None:
    """As `_load`, at the floor: heads are applied to what its sources write, not to rows."""
    some = _at_one_position(slab, at.layer)
    rows = len(at.gradient) + len(at.joining)
    reached = np.flatnonzero((edges.target < rows) & (edges.source < some.stop))
    if not len(reached):
        return
    position = slab.position[some.start : some.stop]
    values = slab.values[at.layer][:, np.arange(some.start, some.stop), position - slab.begin]
    found = carried(local, at, values, position)
    target = on_device(edges.target[reached], found.device)
    source = on_device(edges.source[reached] - some.start, found.device)
    out[edges.edge[reached]] += found[target, source].cpu().numpy()
