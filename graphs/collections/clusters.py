"""Prompts of a dataset in clusters by their graphs, and how well the clusters are known groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from scipy import sparse

from graphs.collections.dataset import GraphDataset
from graphs.collections.incidence import Incidence, incidence
from graphs.schema import GraphError, NodeKind

MEASURES = ("influence", "features")
MOST = 20_000
"""Graphs at most: 8 bytes are held for every two of them, and as much again while clustering."""
LINK = 1e-6
"""Likeness that every two graphs have at least, so that no part stands apart from the rest."""
NAMED = 5
"""Features that tell a cluster."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Graphs that are alike, in clusters."""

    prompts: pa.Table
    """One row a graph, in the dataset's order: prompt (its number), text, the column it was grouped
    by, if any, cluster (from 0, the largest first), silhouette (-1 to 1: how much nearer the other
    graphs of its cluster are than those of the next; 0 where it is alone)."""
    sizes: tuple[int, ...]
    """Graphs in each cluster."""
    features: pa.Table
    """What tells each cluster from the rest: cluster, layer, feature, label, inside and outside
    (share of the graphs in it, and of all others, that hold it), those first whose shares differ
    most."""
    likeness: Float[np.ndarray, "graphs graphs"]
    """From 0, nothing in common, to 1."""
    by: str
    """One of `MEASURES`."""
    agreement: float | None
    """Adjusted Rand index of the clusters and the groups: 1 the same, about 0 by chance; None where
    nothing was grouped."""

    @property
    def silhouette(self) -> float:
        """Mean silhouette of the graphs, -1 to 1: how well clusters stand apart."""
        return float(np.mean(self.prompts["silhouette"].to_numpy()))

    def to_json(self) -> dict[str, Any]:
        """Everything found but the likeness of every two, JSON throughout.

        Returns:
            by, agreement, silhouette, sizes, prompts and features.
        """
        return {
            "by": self.by,
            "agreement": self.agreement,
            "silhouette": self.silhouette,
            "sizes": list(self.sizes),
            "prompts": self.prompts.to_pylist(),
            "features": self.features.to_pylist(),
        }


def clusters(
    dataset: GraphDataset | str | Path,
    count: int = 2,
    by: str = "influence",
    group_by: str | None = None,
    align: str = "anywhere",
) -> Clusters:
    """Put the prompts of a dataset into clusters by the features of their graphs.

    Spectral clustering of how alike every two are, the same for the same graphs; needs
    scikit-learn. `python -m benchmarks.triage` measures it on the embedded default's behaviours.

    Source: Damle, Minden and Ying 2019, "Simple, direct and efficient multi-way spectral
    clustering".

    Args:
        dataset: of graphs, or its folder.
        count: of clusters, 2 or more.
        by: "influence", what features carry: sum of the smaller shares over the sum of the larger,
            as `tracer.compare` has it, but each times log(graphs / graphs that hold it), so that
            what all have counts for nothing; "features", which there are: Jaccard index.
        group_by: a column of its prompts whose values are what clusters are held against.
        align: "anywhere" (a feature is the same wherever it fires), or "end" (only at the same
            distance from the last token).

    Returns:
        Each prompt's cluster, what tells the clusters apart, and how far they are the groups.

    Raises:
        GraphError: no dataset, fewer graphs than clusters, more than `MOST`, another measure, no
            such column, or scikit-learn is missing.
    """
    if by not in MEASURES:
        raise GraphError(f"by is {by!r:.40}, expected one of {', '.join(MEASURES)}")
    _needed()
    held = dataset if isinstance(dataset, GraphDataset) else GraphDataset.load(dataset)
    known = incidence(held, align, group_by)
    graphs = known.prompts.num_rows
    if not 2 <= count < graphs:
        raise GraphError(f"count of clusters is {count}, expected 2 up, and fewer than the "
                         f"{graphs} graphs")  # fmt: skip
    if graphs > MOST:
        raise GraphError(f"the dataset has {graphs} graphs, clusters take at most {MOST}: 8 bytes "
                         "are held for every two")  # fmt: skip
    rows = np.flatnonzero(_is_feature(known))
    carried = sparse.csr_array(known.carried[:, rows])
    alike = likeness(carried, by)
    own = _ordered(_joined(alike, count))
    groups = None if group_by is None else [str(v) for v in known.prompts[group_by].to_pylist()]
    return Clusters(
        prompts=_prompts(known, own, alike),
        sizes=tuple(np.bincount(own).tolist()),
        features=_telling(known, rows, carried, own),
        likeness=alike,
        by=by,
        agreement=None if groups is None else _agreement(groups, own),
    )


def likeness(carried: sparse.csr_array, by: str) -> Float[np.ndarray, "graphs graphs"]:
    """How alike every two graphs are.

    Args:
        carried: (graphs, features) what each carries, 0 or more; what is stored is held.
        by: one of `MEASURES`; by influence each feature times log(graphs / graphs that hold it).

    Returns:
        Shares, 1 for graphs that have the same, also nothing.

    >>> carried = sparse.csr_array([[0.4, 0.2, 0.0], [0.1, 0.2, 0.0], [0.1, 0.0, 0.3]])
    >>> likeness(carried, "features").round(3)[0].tolist()
    [1.0, 1.0, 0.333]
    >>> likeness(carried, "influence").round(3)[1].tolist()
    [1.0, 1.0, 0.0]
    """
    from sklearn.metrics.pairwise import manhattan_distances

    values = sparse.csr_matrix(carried)  # scikit-learn asks for matrices
    graphs, columns = values.shape
    if by == "features":
        values.data = np.ones_like(values.data)
    else:
        count = np.bincount(values.indices, minlength=columns)
        values.data = values.data * np.log(graphs / np.maximum(count, 1))[values.indices]
    values.indices, values.indptr = (at.astype(np.int32) for at in (values.indices, values.indptr))
    apart = manhattan_distances(values)
    total = np.asarray(values.sum(axis=1)).ravel()
    both = total[:, None] + total
    smaller, larger = (both - apart) / 2, (both + apart) / 2
    found = np.divide(smaller, larger, out=np.ones_like(larger), where=larger > 0)
    found = np.clip((found + found.T) / 2, 0.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return found


def _needed() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise GraphError(
            "clusters need scikit-learn, which is not installed: pip install 'tracer[features]'"
        ) from error


def _is_feature(known: Incidence) -> np.ndarray:
    return np.array(known.nodes["kind"].to_pylist(), object) == NodeKind.FEATURE


def _joined(alike: Float[np.ndarray, "graphs graphs"], count: int) -> Int[np.ndarray, " graphs"]:
    from sklearn.cluster import SpectralClustering

    how = SpectralClustering(
        count, affinity="precomputed", assign_labels="cluster_qr", random_state=0
    )
    found: np.ndarray = how.fit_predict(alike + LINK)
    return found


def _ordered(own: Int[np.ndarray, " graphs"]) -> Int[np.ndarray, " graphs"]:
    """Clusters numbered from the largest; of equal ones the one that comes first."""
    names, first, sizes = np.unique(own, return_index=True, return_counts=True)
    number = np.empty(len(names), int)
    number[np.lexsort((first, -sizes))] = np.arange(len(names))
    return number[np.searchsorted(names, own)]


def _prompts(known: Incidence, own: Int[np.ndarray, " graphs"], alike: np.ndarray) -> pa.Table:
    from sklearn.metrics import silhouette_samples

    apart = 1 - alike
    np.fill_diagonal(apart, 0)
    several = len(set(own.tolist())) < len(own)
    shares = silhouette_samples(apart, own, metric="precomputed") if several else np.zeros(len(own))
    table = known.prompts.append_column("cluster", pa.array(own, pa.int32()))
    return table.append_column("silhouette", pa.array(shares, pa.float64()))


def _telling(
    known: Incidence, rows: np.ndarray, carried: sparse.csr_array, own: Int[np.ndarray, " graphs"]
) -> pa.Table:
    """The features whose shares inside and outside a cluster differ most."""
    there = carried.copy()
    there.data = np.ones_like(there.data)
    nodes = known.nodes.take(rows).to_pylist()
    total = np.asarray(there.sum(axis=0)).ravel()
    found = []
    for cluster in range(int(own.max()) + 1):
        inside = np.flatnonzero(own == cluster)
        held = np.asarray(there[inside].sum(axis=0)).ravel()
        shares = held / len(inside), (total - held) / max(len(own) - len(inside), 1)
        order = np.argsort(shares[1] - shares[0], kind="stable")[:NAMED]
        found += [
            {"cluster": cluster, "layer": nodes[at]["layer"], "feature": int(nodes[at]["name"]),
             "label": nodes[at]["label"], "inside": float(shares[0][at]),
             "outside": float(shares[1][at])}
            for at in order.tolist() if shares[0][at] > shares[1][at]
        ]  # fmt: skip
    return pa.Table.from_pylist(found, pa.schema(list(FEATURES.items())))


FEATURES = {
    "cluster": pa.int32(),
    "layer": pa.int32(),
    "feature": pa.int64(),
    "label": pa.string(),
    "inside": pa.float64(),
    "outside": pa.float64(),
}


def _agreement(groups: Sequence[str], own: Int[np.ndarray, " graphs"]) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(groups, own))
