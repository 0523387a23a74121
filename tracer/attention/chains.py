"""`head_chains`: an edge through several layers, as the sequences of heads it went through.

Loadings split an edge at one layer; only chains split it at all of them together. A chain begins
where the source is written and takes, at every layer above, a head or none. What all completions
of an unfinished chain carry together is its stream times the gradient there, so the search can
stop anywhere: what it did not follow is an exact remainder.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from graphs import AttributionGraph
from graphs.attention_tables import edge_name
from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.sites import top_layer
from tracer.attention.explained import explained
from tracer.attention.heads import chosen_edges
from tracer.attention.plain_streams import gradients, mixed_values, outputs
from tracer.attention.sources import Sources, Writes, sources_of
from tracer.attribution.local_model import LinearLayer, LocalModel
from tracer.attribution.targets import TargetRows
from tracer.errors import TraceError

STEPS = 400
"""Chains that are followed on by one layer before the search stops."""


@dataclass(frozen=True, eq=False)
class Chains:
    """The strongest chains of one edge."""

    edge: str
    weight: float
    """The edge."""
    table: pa.Table
    """One row a chain, strongest first: written (layer, -1 for a token), heads as in "2.4 3.3" (""
    where the source stayed at its position all the way), loading in units of the edge."""
    remainder: float
    """What chains that are not listed carry: with the loadings it adds up to the edge."""

    __repr__ = one_line


@dataclass(frozen=True, eq=False)
class _Chain:
    """A chain as far as it has been followed."""

    written: int
    heads: tuple[tuple[int, int], ...]
    entering: int
    """The layer that comes next."""
    stream: Float[Tensor, "positions d_model"]
    total: float
    """What all its completions carry."""


@one_call()
@torch.no_grad()
def head_chains(
    model: ReplacementModel,
    graph: AttributionGraph,
    source: str,
    target: str,
    top: int = 20,
    steps: int = STEPS,
) -> Chains:
    """Follow one edge through all its attention layers, the strongest chains of heads first.

    Args:
        model: the model the graph was traced from.
        graph: pruned or not.
        source: id of the node the edge starts at.
        target: id of the node it ends in.
        top: stop after so many whole chains.
        steps: or after so many chains have been followed on by one layer.

    Returns:
        The chains, with the exact remainder.

    Raises:
        TraceError: the graph is of another model or has no such edge, or a number is below 1.
    """
    for name, number in (("top", top), ("steps", steps)):
        if number < 1:
            raise TraceError(f"{name} is {number}, expected 1 or more")
    about = explained(model, graph)
    edge = chosen_edges(about, [(source, target)])
    followed = _Followed.of(about.local, edge.columns, edge.rows)
    whole, rest = _search(followed, top, steps)
    rows = sorted(whole, key=lambda chain: -abs(chain.total))
    table = pa.table(
        {
            "written": pa.array([chain.written for chain in rows], pa.int32()),
            "heads": pa.array([_heads(chain.heads) for chain in rows], pa.string()),
            "loading": pa.array([chain.total for chain in rows], pa.float64()),
        }
    )
    return Chains(edge_name(source, target), float(edge.weight[0]), table, rest)


def _heads(chain: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{layer}.{head}" for layer, head in chain)


def _search(followed: "_Followed", top: int, steps: int) -> tuple[list[_Chain], float]:
    """Best first, by what all completions carry together."""
    order = count()
    heap: list[tuple[float, int, _Chain]] = []
    for chain in followed.begun():
        heapq.heappush(heap, (-abs(chain.total), next(order), chain))
    whole: list[_Chain] = []
    while heap and len(whole) < top and steps:
        _, _, chain = heapq.heappop(heap)
        if chain.entering > followed.last:
            whole.append(chain)
            continue
        steps -= 1
        for following in followed.followed_on(chain):
            heapq.heappush(heap, (-abs(following.total), next(order), following))
    return whole, sum(chain.total for *_, chain in heap)


@dataclass(frozen=True, eq=False)
class _Followed:
    """One source and one row, with the row's gradients at every layer."""

    local: LocalModel
    sources: Sources
    above: Mapping[int, Float[Tensor, "positions d_model"]]
    """The stream above a layer."""
    read: Mapping[int, Float[Tensor, "positions d_model"]]
    """What its attention adds."""
    stays: Mapping[int, Float[Tensor, "positions d_model"]]
    """What passes beside attention."""
    last: int
    """The uppermost attention layer that the row passes."""

    @classmethod
    def of(cls, local: LocalModel, columns: np.ndarray, row: TargetRows) -> "_Followed":
        """Pull the row down once."""
        above, read, stays = {}, {}, {}
        for layer, top, into, beside in gradients(local, row):
            above[layer], read[layer], stays[layer] = top[0].clone(), into[0].clone(), beside[0]
        last = top_layer(int(row.site[0]))
        return cls(local, sources_of(local, columns), above, read, stays, last)

    def begun(self) -> Iterator[_Chain]:
        """A chain for every place where the source is written and the row still reads."""
        if len(self.sources.tokens):
            stream = self._placed(self.sources.tokens)
            total = self._stayed(0, stream) + float(self._through(0, stream)[1].sum())
            yield _Chain(-1, (), 0, stream, total)
        for layer, writes in enumerate(self.sources.layers):
            if len(writes) and layer in self.above:
                stream = self._placed(writes)
                total = float((self.above[layer] * stream).sum())
                if total:
                    yield _Chain(layer, (), layer + 1, stream, total)

    def _placed(self, writes: Writes) -> Float[Tensor, "positions d_model"]:
        stream = writes.vector.new_zeros(1, *self.local.token_vectors.shape)
        writes.add_to(stream)
        return stream[0]

    def followed_on(self, chain: _Chain) -> Iterator[_Chain]:
        """The chain past the next layer's heads, and through each of them."""
        layer = chain.entering
        maps, ahead = self.local.layers[layer], chain.entering + 1
        stream = chain.stream.to(maps.device)
        stayed = self._stayed(layer, stream)
        past = _skipped(maps, stream, True)
        yield _Chain(chain.written, chain.heads, ahead, past, stayed)
        added, totals = self._through(layer, stream)
        for head, total in enumerate(totals.tolist()):
            if total:
                past = _skipped(maps, added[head], False)
                heads = (*chain.heads, (layer, head))
                yield _Chain(chain.written, heads, ahead, past, total)

    def _stayed(self, layer: int, stream: Tensor) -> float:
        return float((self.stays[layer] * stream).sum())

    def _through(self, layer: int, stream: Tensor) -> tuple[Tensor, Tensor]:
        """What each head adds, (heads, positions, d_model), and what comes of it in the row."""
        maps = self.local.layers[layer]
        pattern = maps.transposed_pattern(0, len(stream))
        mixed = mixed_values(pattern, maps.write_values(stream)[None])
        gated = maps.read_heads(mixed.flatten(2), 0).view_as(mixed)[0].transpose(0, 1)
        added = gated @ outputs(maps, len(gated))
        return added, (added * self.read[layer]).sum((1, 2))


def _skipped(maps: LinearLayer, stream: Tensor, stays: bool) -> Tensor:
    """A stream above the linear skip; in parallel blocks what heads add does not pass it."""
    if maps.skip is None or (maps.parallel and not stays):
        return stream
    return stream + (stream @ maps.skip) * maps.skip_scale
