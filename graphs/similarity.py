"""How alike the features of a graph are: by their labels, by what they read and write, or both.

`likeness` is the mean of up to three measures, each from 0 to 1:

    words       parts of the label in common, over all parts of both
    neighbours  influence that comes from and goes to the same nodes with the same sign, over all
                that comes and goes: Σ min / Σ max of the two profiles, inputs and outputs apart
    decoders    cosine of what the two write, 0 where it is negative; where a model gives it

`profiles` is the measure that Neuronpedia's draft of automatic supernodes uses (pull request 229):
the cosine of signed profiles of inputs and outputs, here likewise 0 where it is negative.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import sparse

from graphs import words
from graphs.schema import GraphError

Square = Float[np.ndarray, "features features"]
Flows = tuple[sparse.csr_array, Float[np.ndarray, " nodes"], np.ndarray]
"""(nodes, nodes) signed shares of each row's input; (nodes,) influence and weight b + w;
(features,) rows of the features."""
MEASURES = ("likeness", "profiles")


def chosen(
    by: str, labels: Sequence[str | None], flowing: Flows, decoders: Square | None = None
) -> Square:
    """One of `MEASURES` by name.

    Returns:
        (features, features) from 0 to 1, symmetric, 1 on the diagonal.

    Raises:
        GraphError: another name, or cosines of another shape.
    """
    count = len(labels)
    if by not in MEASURES:
        raise GraphError(f"by is {by!r}, expected one of {', '.join(MEASURES)}")
    if decoders is not None and decoders.shape != (count, count):
        raise GraphError(f"decoders has shape {decoders.shape}, expected {(count, count)}: "
                         "one row and column a feature, in node order")  # fmt: skip
    return profiles(*flowing) if by == "profiles" else likeness(labels, flowing, decoders)


def likeness(
    labels: Sequence[str | None], flowing: Flows, decoders: Square | None = None
) -> Square:
    """How alike features are by labels, neighbours and, where given, decoders.

    Args:
        labels: of the features.
        flowing: what they read and write.
        decoders: (features, features) cosines of what they write; None: leave them out.

    Returns:
        (features, features) from 0 to 1, symmetric, 1 on the diagonal.
    """
    parts = [of_words(labels), of_neighbours(*flowing)]
    if decoders is not None:
        parts.append(np.clip(decoders, 0, 1))
    return _symmetric(np.mean(parts, axis=0))


def of_words(labels: Sequence[str | None]) -> Square:
    """Parts of two labels in common over all parts of both; 0 where one has none.

    Returns:
        (features, features) from 0 to 1.

    >>> of_words(["Texas, TX · Dallas", "TX, Texas", "Ohio", None])[0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    parts = [label_words(label) for label in labels]
    return np.array(
        [[len(a & b) / len(a | b) if a and b else 0.0 for b in parts] for a in parts]
    ).reshape(len(parts), len(parts))


def label_words(label: str | None) -> frozenset[str]:
    """The parts of what a label says is promoted, without case."""
    said = words.label_parts(label)[0]
    return frozenset(part.strip().casefold() for part in said.split(",") if part.strip())


def of_neighbours(
    signed: sparse.csr_array, through: Float[np.ndarray, " nodes"], features: np.ndarray
) -> Square:
    """Inputs and outputs in common, by share and sign; the mean of the two.

    Returns:
        (features, features) from 0 to 1.
    """
    inputs, outputs = flows(signed, through, features)
    return (_overlap(inputs) + _overlap(outputs)) / 2


def flows(
    signed: sparse.csr_array, through: Float[np.ndarray, " nodes"], features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature, where its input comes from and where its influence goes.

    Returns:
        Two arrays (features, nodes) of signed shares; sizes in a row add up to at most 1.
    """
    inputs = signed[features].toarray()
    outputs = (signed.tocsc()[:, features].toarray() * through[:, None]).T
    size = np.abs(outputs).sum(1, keepdims=True)
    return inputs, outputs / np.where(size == 0, 1, size)


def _overlap(profile: Float[np.ndarray, "features nodes"]) -> Square:
    """Σ min / Σ max of the positive and negative parts of every two rows; 0 where both are 0."""
    count = len(profile)
    found = np.zeros((count, count))
    parts = np.concatenate([np.clip(profile, 0, None), np.clip(-profile, 0, None)], axis=1)
    total = parts.sum(1)
    for row in range(count):
        least = np.minimum(parts[row], parts).sum(1)
        most = total[row] + total - least
        found[row] = least / np.where(most == 0, 1, most)
    return found


def profiles(
    signed: sparse.csr_array, through: Float[np.ndarray, " nodes"], features: np.ndarray
) -> Square:
    """Cosine of the signed profiles of inputs and outputs, 0 where it is negative.

    Returns:
        (features, features) from 0 to 1, symmetric, 1 on the diagonal.
    """
    whole = np.concatenate(flows(signed, through, features), axis=1)
    length = np.linalg.norm(whole, axis=1, keepdims=True)
    unit = whole / np.where(length == 0, 1, length)
    return _symmetric(np.clip(unit @ unit.T, 0, 1))


def _symmetric(square: Square) -> Square:
    found = (square + square.T) / 2
    np.fill_diagonal(found, 1)
    return found


def clusters(alike: Square, kinds: np.ndarray, least: float) -> list[list[int]]:
    """Features in groups all of whose pairs are at least so much alike (complete link).

    Args:
        alike: (features, features) from 0 to 1.
        kinds: (features,) features of different kinds are never grouped.
        least: likeness of every pair in a group.

    Returns:
        Groups of two features or more, each in order, the one of the lowest feature first.

    >>> alike = np.array([[1, 0.9, 0.9], [0.9, 1, 0.1], [0.9, 0.1, 1]])
    >>> clusters(alike, np.zeros(3), 0.5)
    [[0, 1]]
    """
    if len(alike) < 2:
        return []
    apart = np.where(kinds[:, None] == kinds, 1 - alike, 2.0)
    np.fill_diagonal(apart, 0)
    from scipy.cluster import hierarchy  # half as much to import as all else of a graph
    from scipy.spatial.distance import squareform

    tree = hierarchy.linkage(squareform(apart, checks=False), method="complete")
    found = hierarchy.fcluster(tree, 1 - least + 1e-12, criterion="distance")
    members = [np.flatnonzero(found == number).tolist() for number in np.unique(found)]
    return sorted(some for some in members if len(some) > 1)
