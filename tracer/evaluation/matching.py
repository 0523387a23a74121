"""Features of one dictionary found again in another, and how far two models' streams are one space.

Two dictionaries number their features as they please, and so do two trainings of one: features are
matched by what they do, the correlation of their activations over the same tokens. Streams of two
models are compared as spaces: centred kernel alignment, and the best rotation of one onto the
other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from scipy import sparse

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError

AT_ONCE = 1024
"""Features of the first dictionary whose correlations are held together."""
FEATURES = {
    "layer": pa.int32(),
    "feature": pa.int64(),
    "fires": pa.int64(),
    "other_layer": pa.int32(),
    "other_feature": pa.int64(),
    "correlation": pa.float64(),
    "mutual": pa.bool_(),
}
STREAMS = {
    "layer": pa.int32(),
    "other_layer": pa.int32(),
    "cka": pa.float64(),
    "aligned": pa.float64(),
}


@dataclass(frozen=True, eq=False)
class Matching:
    """What two models with their dictionaries have in common on one text."""

    features: pa.Table
    """One row a feature of the first that fired: layer, feature, fires (positions), then its best
    match in the other, other_layer and other_feature (null where none varies), correlation (-1 to
    1) and mutual (whether it is that one's best match too)."""
    streams: pa.Table
    """One row a stream of the first, entering each layer and last the final norm: layer,
    other_layer (at the same depth), cka (linear, 0 to 1) and aligned (share of the other's variance
    that the best rotation and scaling of the first explains, 0 to 1)."""
    positions: int
    """Of text, on which both ran."""

    def shared(self, least: float = 0.7) -> float:
        """Share of the features that fired whose match is mutual and correlates that much."""
        rows = self.features.num_rows
        mutual = self.features["mutual"].to_numpy(zero_copy_only=False)
        close = self.features["correlation"].fill_null(-1.0).to_numpy() >= least
        return float((mutual & close).sum()) / rows if rows else 0.0


@one_call()
@torch.no_grad()
def match(
    model: ReplacementModel,
    other: ReplacementModel,
    prompts: Sequence[str | Sequence[int]],
    skip_positions: int = 1,
    across: bool = True,
) -> Matching:
    """Match the features of two dictionaries, and compare the streams of their models.

    Args:
        model: one model with its dictionary.
        other: the other; of the same model, or of another with the same tokens.
        prompts: text, or token ids taken as they stand.
        skip_positions: first positions of each that do not count.
        across: match features of any layer; False: only at the same depth.

    Returns:
        The features of `model` with their matches, and the streams of both.

    Raises:
        TraceError: the two read a prompt as other tokens, or there are fewer than two positions.
        ModelError: a prompt does not fit a model.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", for
    CKA; Schönemann 1966 for the rotation; Bricken et al. 2023, "Towards Monosemanticity", for
    universality by correlation of activations.
    """
    models = (model, other)
    fired, streams = ([_Fired(one) for one in models], [_streams(one) for one in models])
    pairs = _depths(*(len(one.host.blocks) for one in models))
    sums = [Moments.of(*(held[at] for held, at in zip(streams, pair, strict=True)))
            for pair in pairs]  # fmt: skip
    positions = 0
    for prompt in prompts:
        ids = [one.tokenize(prompt) for one in models]
        if ids[0] != ids[1]:
            raise TraceError(f"the two models read {prompt!r:.60} as other tokens: match models "
                             "with one tokenizer, or give token ids")  # fmt: skip
        records = [one.record(ids[0]) for one in models]
        for seen, record in zip(fired, records, strict=True):
            seen.add(record.features, len(ids[0]), skip_positions)
        for moments, (one, two) in zip(sums, pairs, strict=True):
            moments.add(
                *(_values(record.residuals[at], skip_positions)
                  for record, at in zip(records, (one, two), strict=True))
            )  # fmt: skip
        positions += max(0, len(ids[0]) - skip_positions)
    if positions < 2:
        raise TraceError("there are fewer than two positions to correlate over: give more text")
    rows = [
        {"layer": one, "other_layer": two, "cka": moments.cka, "aligned": moments.aligned}
        for moments, (one, two) in zip(sums, pairs, strict=True)
    ]
    return Matching(
        _matched(fired[0].finished(positions), fired[1].finished(positions), pairs, across),
        pa.Table.from_pylist(rows, pa.schema(list(STREAMS.items()))),
        positions,
    )


def _depths(layers: int, others: int) -> list[tuple[int, int]]:
    """Streams of the first, and those of the other at the same depth."""
    return [(at, round(at * others / layers)) for at in range(layers + 1)]


def _streams(model: ReplacementModel) -> list[int]:
    """Widths of a model's streams."""
    return [model.host.d_model] * (len(model.host.blocks) + 1)


def _values(stream: torch.Tensor, skip: int) -> Float[np.ndarray, "positions d_model"]:
    found: np.ndarray = stream[skip:].double().cpu().numpy()
    return found


class Moments:
    """Sums over positions of two streams, of which their likeness is made."""

    def __init__(self, one: int, other: int) -> None:
        self.count = 0
        self.sums = [np.zeros(one), np.zeros(other)]
        self.squares = [np.zeros((one, one)), np.zeros((other, other))]
        self.cross = np.zeros((one, other))

    @classmethod
    def of(cls, one: int, other: int) -> "Moments":
        """None yet, of streams of these widths."""
        return cls(one, other)

    def add(self, x: Float[np.ndarray, "positions a"], y: Float[np.ndarray, "positions b"]) -> None:
        """Take the same positions of both."""
        self.count += len(x)
        for at, values in enumerate((x, y)):
            self.sums[at] += values.sum(0)
            self.squares[at] += values.T @ values
        self.cross += x.T @ y

    @property
    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(a, a), (b, b) and (a, b): products of both about their means, summed over positions."""
        x, y = self.sums
        own = [
            square - np.outer(total, total) / self.count
            for square, total in zip(self.squares, self.sums, strict=True)
        ]
        return own[0], own[1], self.cross - np.outer(x, y) / self.count

    @property
    def cka(self) -> float:
        """Linear centred kernel alignment, 0 to 1: the same under rotation and scaling."""
        x, y, both = self.centred
        whole = float(np.linalg.norm(x) * np.linalg.norm(y))
        return min(1.0, float((both**2).sum()) / whole) if whole else 0.0

    @property
    def aligned(self) -> float:
        """Share of the variance of one that the best rotation and scaling of the other explains."""
        x, y, both = self.centred
        whole = float(np.trace(x) * np.trace(y))
        return min(1.0, float(np.linalg.norm(both, "nuc")) ** 2 / whole) if whole > 0 else 0.0


class _Fired:
    """Activations of one dictionary over all positions, sparse."""

    def __init__(self, model: ReplacementModel) -> None:
        self.widths = [len(one.b_enc) for one in model.transcoder.layers]
        self.starts = np.concatenate([[0], np.cumsum(self.widths)])
        self.rows = 0
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, active: object, length: int, skip: int) -> None:
        """Take a prompt's features, but for its first positions."""
        names = ("layer", "position", "feature", "activation")
        layer, position, feature, value = (
            getattr(active, name).cpu().double().numpy() for name in names
        )
        kept = position >= skip
        column = self.starts[layer[kept].astype(int)] + feature[kept].astype(int)
        row = self.rows + position[kept].astype(int) - skip
        self.parts.append((row, column, value[kept]))
        self.rows += max(0, length - skip)

    def finished(self, positions: int) -> "_Standard":
        """Columns that vary, each of mean 0 and length 1 once its mean is taken off."""
        row, column, value = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        held = sparse.csc_array((value, (row, column)), shape=(positions, int(self.starts[-1])))
        fires = np.diff(held.indptr)
        mean = np.asarray(held.sum(axis=0)).ravel() / positions
        square = np.asarray(held.power(2).sum(axis=0)).ravel()
        size = np.sqrt(np.maximum(square - positions * mean**2, 0))
        known = np.flatnonzero((fires > 0) & (size > 1e-9 * np.sqrt(np.maximum(square, 1e-300))))
        scale = sparse.diags_array(1 / size[known])
        layers = np.searchsorted(self.starts, known, side="right") - 1
        return _Standard(
            sparse.csc_array(held[:, known] @ scale),
            mean[known] / size[known],
            layers,
            known - self.starts[layers],
            fires[known],
        )


@dataclass(frozen=True, eq=False)
class _Standard:
    values: sparse.csc_array
    """(positions, features), not centred, which would fill it."""
    mean: np.ndarray
    layer: np.ndarray
    feature: np.ndarray
    fires: np.ndarray


def _correlations(
    one: _Standard, other: _Standard, pairs: Sequence[tuple[int, int]], across: bool
) -> Iterator[tuple[int, Float[np.ndarray, "some others"]]]:
    """Correlations of some features after the other with all of the other dictionary."""
    positions = one.values.shape[0]
    partner = np.array([min(two, int(other.layer.max(initial=0))) for _, two in pairs])
    for start in range(0, len(one.mean), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        found = (one.values[:, some].T @ other.values).toarray()
        found -= positions * np.outer(one.mean[some], other.mean)
        if not across:
            found[partner[one.layer[some]][:, None] != other.layer] = -np.inf
        yield start, found


def _matched(
    one: _Standard, other: _Standard, pairs: Sequence[tuple[int, int]], across: bool
) -> pa.Table:
    """Each feature with the one of the other dictionary that correlates most."""
    best = np.full(len(one.mean), -1)
    value = np.full(len(one.mean), -np.inf)
    back, most = np.full(len(other.mean), -1), np.full(len(other.mean), -np.inf)
    for start, found in _correlations(one, other, pairs, across) if len(other.mean) else ():
        rows = slice(start, start + len(found))
        best[rows], value[rows] = found.argmax(1), found.max(1)
        column, row = found.max(0), start + found.argmax(0)
        back = np.where(column > most, row, back)
        most = np.maximum(column, most)
    known = np.isfinite(value)
    at = np.where(known, best, 0)
    mutual = known & (back[at] == np.arange(len(best))) if len(back) else known
    names = (other.layer, other.feature) if len(back) else (np.zeros(1, int), np.zeros(1, int))
    columns = {
        "layer": one.layer,
        "feature": one.feature,
        "fires": one.fires,
        "other_layer": pa.array(names[0][at], pa.int32(), mask=~known),
        "other_feature": pa.array(names[1][at], pa.int64(), mask=~known),
        "correlation": pa.array(np.where(known, np.clip(value, -1, 1), 0), mask=~known),
        "mutual": mutual,
    }
    return pa.table(columns).cast(pa.schema(list(FEATURES.items())))
