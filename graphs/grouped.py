"""A graph with its groups as nodes: automatic groups, and what is left of the scores.

In the grouped graph a group stands for its members: it reads the mean of what they read, weighted
by their influence, and writes the sum of what they write,

    S[G, H] = Σ_{t in G} f_t Σ_{s in H} S[t, s] / Σ_{t in G} f_t,   f = b + w,

S the signed shares of the input as the model computed it. Flows through the groups are then those
through their members, except that effects of opposite sign within a group cancel: what cancels
counts as error, so a group of features that disagree costs completeness. What members write to
each other stays inside the group. Only features are merged: a token, an error or a target in a
group is a node of its own here.

Source: Ameisen et al. 2025, "Circuit Tracing", for the scores; grouped sums after the supernodes
that circuit-tracer and Neuronpedia draw.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from graphs import words
from graphs.groups import Group
from graphs.paths import solved
from graphs.scores import ROUNDING, ScorePair

ELSEWHERE = re.compile(r"(≈ )?(mostly|e\.g\.) ")
"""How labels begin that are not said of the prompt."""
PARTING = re.compile(r",(?![^“”]*”)")
EXAMPLE = re.compile(r"(?:≈ )?e\.g\. ")


def named(members: Sequence[Sequence[dict[str, Any]]], tokens: Sequence[str]) -> list[Group]:
    """Groups with names that people understand, none twice.

    A group is named by the parts of labels that hold most of its influence, then by the token
    where it stands if that name is taken, then by number.

    Args:
        members: rows of the node table, a list a group.
        tokens: of the prompt.
    """
    taken: set[str] = set()
    groups = []
    for rows in members:
        name, place = group_name(rows), rows[0]["position"]
        at = words.token(tokens[place]) if place < len(tokens) else f"position {place}"
        tries = chain([name, f"{name} (at {at})"], (f"{name} {n}" for n in count(2)))
        name = next(text for text in tries if text not in taken)
        taken.add(name)
        groups.append(Group(name, tuple(row["id"] for row in rows)))
    return groups


def group_name(rows: Sequence[dict[str, Any]], most: int = 2) -> str:
    """What the labels of some nodes have in common: their heaviest parts, in at most `most`.

    Labels that hold in the prompt go before those that say what a feature mostly does elsewhere, or
    show an example.

    >>> rows = [{"label": "Texas, TX", "influence": 2}, {"label": "Dallas, Texas", "influence": 1}]
    >>> group_name(rows), group_name(rows[:1])
    ('Texas', 'Texas, TX')
    """
    weight: dict[str, float] = defaultdict(float)
    shown: dict[str, str] = {}
    for row in [row for row in rows if not ELSEWHERE.match(row["label"] or "")] or rows:
        for part in _parts(words.label_parts(row["label"])[0]):
            if part:
                shown.setdefault(part.casefold(), part)
                weight[part.casefold()] += row["influence"] or 1e-12
    if not weight:
        return "no label"
    order = sorted(weight, key=weight.__getitem__, reverse=True)
    heavy = [shown[part] for part in order[:most] if weight[part] >= 0.999 * weight[order[0]]]
    return ", ".join(heavy)


def _parts(label: str) -> list[str]:
    """What commas part: not those of a quoted or marked token, nor of an example's text."""
    if EXAMPLE.match(label):
        return [label]
    return [part.strip() for part in PARTING.split(label)]


def grouped_scores(
    signed: sparse.csr_array,
    read: Bool[np.ndarray, " nodes"],
    weight: Float[np.ndarray, " nodes"],
    reached: Float[np.ndarray, " nodes"],
    ends: tuple[np.ndarray, np.ndarray, np.ndarray],
    owner: np.ndarray,
    alone: bool = False,
) -> ScorePair:
    """Replacement and completeness with groups as nodes.

    Args:
        signed: (nodes, nodes) signed shares of each row's input, as the model computed it.
        read: (nodes,) which nodes had any input, left or lost.
        weight: (nodes,) w of the targets.
        reached: (nodes,) influence b over the sizes of these shares.
        ends: which nodes are tokens, errors and logits.
        owner: (nodes,) number of each node's group, below 0 for none.
        alone: count features without a group as error, as Neuronpedia does with what is not
            pinned.

    Returns:
        Shares from 0 to 1, without units; NaN where the targets weigh nothing.
    """
    token, error, logit = ends
    owner = np.where(token | error | logit, -1, owner)
    stray = alone & (owner < 0) & ~(token | error | logit)
    number = _numbered(owner)
    kept = sparse.csr_array(sparse.diags_array((~stray).astype(float)) @ signed)
    block, held = _merged(kept, weight + reached, number)

    def summed(value: np.ndarray) -> np.ndarray:
        return np.bincount(number, value, block.shape[0])

    size, weights = abs(block), summed(weight)
    lost = np.clip(summed(held * (read & ~stray)) - _sums(size), 0, None)
    through = _solved(size, weights)
    tokens, errors = (
        float((through - weights)[summed(some) > 0].sum()) for some in (token, error | stray)
    )
    whole = float(weight.sum()) if (lost > ROUNDING).any() else tokens + errors
    explained = 1 - size @ (summed(error | stray) > 0).astype(float) - lost
    share = _ratio(float(through @ explained), float(through.sum()))
    return ScorePair(_ratio(tokens, whole), share)


def _sums(size: sparse.csr_array) -> np.ndarray:
    return np.asarray(size.sum(axis=1)).reshape(-1)


def _numbered(owner: np.ndarray) -> np.ndarray:
    """A number for every group and every node without one, from 0."""
    own = np.where(owner >= 0, owner, owner.max(initial=-1) + 1 + np.arange(len(owner)))
    return np.unique(own, return_inverse=True)[1].reshape(-1)


def _merged(
    signed: sparse.csr_array, flow: Float[np.ndarray, " nodes"], number: np.ndarray
) -> tuple[sparse.csr_array, Float[np.ndarray, " nodes"]]:
    """Shares between groups, and what each node counts for in its group."""
    count = int(number.max(initial=-1)) + 1
    total = np.bincount(number, flow, count)[number]
    held = np.where(total > 0, flow, 1.0)
    held = held / np.bincount(number, held, count)[number]
    gather = sparse.csr_array((held, (number, np.arange(len(number)))), (count, len(number)))
    spread = sparse.csr_array(
        (np.ones(len(number)), (np.arange(len(number)), number)), (len(number), count)
    )
    return sparse.csr_array(gather @ signed @ spread), held


def _solved(share: sparse.csr_array, weight: np.ndarray) -> np.ndarray:
    """Influence and weight, `x = P^T x + w`, cycles between groups included."""
    if not len(weight):
        return weight
    system = sparse.csc_array(sparse.eye_array(len(weight)) - share.T)
    return solved(system, weight)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
