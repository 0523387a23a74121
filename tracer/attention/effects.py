"""`attention_effects`: what nodes change through attention scores and norms, to the first order.

An attribution graph takes attention patterns and norm denominators as given. Both depend on the
nodes: these matrices say by how much each node moves each target by moving them, as the derivative
at what was recorded. They stand beside `effect` and are no part of it: nothing adds up in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse

from graphs import AttributionGraph, NodeKind
from graphs.schema import is_kind
from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from tracer.attention.explained import Explained, explained
from tracer.attention.live import Live, LiveLayer, live_layers, pull_live
from tracer.attribution.blocks import entries
from tracer.attribution.local_model import pattern_bytes, vector_bytes
from tracer.attribution.product import summed_in
from tracer.attribution.scoring import EffectSums, JoiningRows, score_tokens, score_writers
from tracer.attribution.sizes import Sizes
from tracer.attribution.targets import TargetRows

ENTRIES = 1 << 24
"""Numbers of patterns by row, or of gradients, held at once."""
HELD = 5
"""Numbers by row, head, query and key that are held for each."""
SPARSE = 56
"""Bytes of a difference between two matrices while it is made sparse."""
STEPS = (Live(False, False), Live(True, False), Live(True, True))
ODDS = (Live(False, False), Live(True, False, True), Live(True, True, True))
"""The same by QK attribution: what decides where heads look, rather than what would move them."""


@dataclass(frozen=True, eq=False)
class FirstOrderEffects:
    """What nodes change beside their edges; first order, not conserved.

    Both are (nodes, nodes), [target, source], in units of `effect` and the order of its nodes: what
    a target would lose to the first order if the source's write were taken away.
    """

    attention: sparse.csr_array
    """Through attention scores, norm denominators held; in layers that hold more (decay, gates,
    factors around the pattern), through all of that."""
    norms: sparse.csr_array
    """What norm denominators add when they answer as well, those of queries and keys included."""
    conserved: bool = False
    """Never: rows of these add up to nothing in particular."""

    __repr__ = one_line

    def beside(self, effect: sparse.csr_array, norms: bool = True) -> sparse.csr_array:
        """Effects with what attention, and norms if asked for, add to them."""
        whole = effect + self.attention
        return sparse.csr_array(whole + self.norms if norms else whole)


@one_call()
@torch.no_grad()
def attention_effects(model: ReplacementModel, graph: AttributionGraph) -> FirstOrderEffects:
    """By how much every node of a graph moves every target through what the graph holds.

    The derivative at the recorded prompt of the model with its MLPs cut out: attention scores
    answer what is written below them, in linear layers decay, keys, queries and gates, and what
    they change is passed on. Then norm denominators as well.

    Args:
        model: the model the graph was traced from.
        graph: pruned or not; rows are its features and logits, columns its nodes.

    Returns:
        Two matrices, first order and not conserved; scores, influence and pruning know nothing of
        them.

    Raises:
        TraceError: the graph is of another model, or a target is a direction.
    """
    return answers(model, graph, STEPS)


@one_call()
@torch.no_grad()
def answers(
    model: ReplacementModel, graph: AttributionGraph, steps: Sequence[Live]
) -> FirstOrderEffects:
    """What each step adds to the one before it: STEPS or ODDS."""
    about = explained(model, graph)
    ids = graph.nodes["id"].to_pylist()
    targets = np.flatnonzero(is_kind(graph.nodes, NodeKind.FEATURE, NodeKind.LOGIT))
    sources = np.array([row for row, name in enumerate(ids) if name in about.column])
    columns = np.array([about.column[ids[row]] for row in sources], dtype=np.int64)
    rows = about.rows([ids[row] for row in targets])
    found = [_matrix(about, rows, columns, live) for live in steps]
    kind = graph.effect.dtype
    parts = []
    for lower, upper in pairwise(found):
        target, source = np.nonzero(upper != lower)
        value = (upper - lower)[target, source].astype(kind)
        place = (targets[target], sources[source])
        parts.append(sparse.csr_array((value, place), shape=graph.effect.shape))
    return FirstOrderEffects(*parts)


def _matrix(about: Explained, rows: TargetRows, columns: np.ndarray, live: Live) -> np.ndarray:
    """(rows, columns) effects with what answers."""
    layers = live_layers(about, live)
    heads = max(len(block.output) for block in about.model.host.blocks)
    step = _step(about.local.positions, heads, about.local.token_vectors.shape[1])
    found = np.empty((len(rows), len(columns)))
    for start in range(0, len(rows), step):
        some = rows[np.arange(start, min(start + step, len(rows)))]
        found[start : start + step] = _effects(about, some, layers, live)[:, columns]
    fired = np.ones(about.local.columns)
    fired[: len(about.local.features)] = about.local.features.activation.double().cpu().numpy()
    found *= fired[columns]
    return found


def _step(positions: int, heads: int, d_model: int) -> int:
    """Rows pulled down together."""
    return max(1, ENTRIES // (positions * max(heads * positions, d_model)))


def answer_bytes(sizes: Sizes) -> float:
    """Bytes that finding first-order effects takes, beside the model and the graph.

    The patterns of a fresh recording as recorded and transposed, what a local model writes in which
    gradients go everywhere, one round of rows; three dense matrices, and what differs between two
    as a sparse one.
    """
    rows = sizes.explained + sizes.logits
    sources = sizes.explained + (sizes.layers + 1) * sizes.positions
    heads = max(layer[0] for layer in sizes.heads)
    round_of = min(rows, _step(sizes.positions, heads, sizes.d_model))
    pulled = sizes.positions * (HELD * heads * sizes.positions + 3 * sizes.d_model)
    scored = 3 * sizes.columns * np.dtype(np.float64).itemsize
    patterns = pattern_bytes(sizes)
    whole = 2 * patterns.sum() if sizes.patterns_kept else 3 * patterns.max()
    local = vector_bytes(replace(sizes, lifted=False)) + whole
    matrices = rows * sources * 4.25 * np.dtype(np.float64).itemsize
    edges = entries(replace(sizes, edge_floor=0.0))[1]
    return float(local + round_of * (pulled * sizes.itemsize + scored) + matrices + edges * SPARSE)


def _effects(
    about: Explained, rows: TargetRows, layers: dict[int, LiveLayer], live: Live
) -> np.ndarray:
    local = about.local
    kind = summed_in(rows.vector.dtype)
    scores = EffectSums(
        rows.vector.new_zeros(local.columns, len(rows), dtype=kind),
        rows.vector.new_zeros(len(rows), dtype=kind),
    )

    def visit(layer: int, gradient: torch.Tensor) -> None:
        nonlocal scores
        scores = scores.to(gradient.device)
        nobody = JoiningRows(gradient[:0, 0], np.zeros(0, dtype=np.int64))
        score_writers(local, layer, gradient, nobody, scores)

    score_tokens(local, pull_live(about, rows, layers, live, visit), scores, 0)
    found: np.ndarray = scores.sources.T.double().cpu().numpy()
    return found
