"""One row a feature: from what a pass has seen, and from the dictionary's weights."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from replacement_models import ReplacementModel
from replacement_models.text.packing import Packed
from tracer.features.geometry import Plane
from tracer.features.running import LayerState, Running
from tracer.features.settings import Settings
from tracer.features.strongest import windows_of
from tracer.features.tables import FEATURE_COLUMNS, even, lists, places
from tracer.features.together import Sample
from tracer.features.unembedded import Unembedded
from tracer.features.virtual_weights import NOBODY, Nearest, Neighbours, neighbours
from tracer.lenses.affine import AffineLens


@dataclass(frozen=True)
class Described:
    """All that rows of features are made from; what several layers need is made once."""

    model: ReplacementModel
    packed: Packed
    running: Running
    settings: Settings
    lens: AffineLens | None = None
    """A Jacobian lens, to name also the tokens promoted through it."""

    @cached_property
    def text_of(self) -> list[str]:
        """Text of every id of the vocabulary."""
        return [self.model.token_string(token) for token in range(self.model.host.vocabulary)]

    @cached_property
    def windows(self) -> Int[np.ndarray, "windows window"]:
        """Tokens of all windows of the corpus."""
        return self.packed.tokens.reshape(-1, self.settings.window)

    @cached_property
    def unembedded(self) -> Unembedded:
        """Token scores."""
        return Unembedded.of(self.model)

    @cached_property
    def seen_later(self) -> Unembedded | None:
        """Token scores through the lens, where there is one."""
        return None if self.lens is None else Unembedded.of(self.model, self.lens)

    @cached_property
    def plane(self) -> Plane:
        """Where decoders are drawn."""
        return Plane.of(self.model)

    @cached_property
    def neighbours(self) -> Neighbours:
        """Strongest virtual weights and closest decoders."""
        return neighbours(self.model, self.settings.neighbours)

    @cached_property
    def sample(self) -> Sample:
        """What fires together."""
        sizes = {layer: len(self.model.transcoder.layers[layer].W_enc) for layer in self.layers}
        found = {layer: _sampled(state) for layer, state in self.running.layers.items()}
        return Sample(found, sizes)

    @property
    def layers(self) -> tuple[int, ...]:
        """Those with a dictionary."""
        return self.model.transcoder.present


def feature_table(about: Described, layer: int) -> pa.Table:
    """All features of one layer."""
    state = about.running.layers[layer]
    count = len(state.moments.total)
    labels = [about.model.labels.get((layer, feature)) for feature in range(count)]
    columns = {
        "feature": pa.array(np.arange(count), pa.int32()),
        "label": pa.array(labels, pa.string()),
        **_statistics(state, about.running.counted),
        **_fires_on(about, state),
        **_tokens(about, about.unembedded, layer),
        **_tokens(about, about.seen_later, layer, "_later"),
        **_places(about, layer),
        **_others(about, layer, count),
    }
    return pa.table(columns).select(FEATURE_COLUMNS.names).cast(FEATURE_COLUMNS)


def _statistics(state: LayerState, counted: int) -> dict[str, pa.Array]:
    histogram = state.moments.histogram.cpu().numpy()
    total, active = state.moments.total.cpu().numpy(), histogram.sum(1)
    lowest, highest = state.extremes()
    fired = active > 0
    found = state.quantiles().astype(np.float32)
    parts = FEATURE_COLUMNS.field("quantiles").type
    bins = FEATURE_COLUMNS.field("histogram").type
    return {
        "active": pa.array(active),
        "density": pa.array(active / max(1, counted)),
        "mean": pa.array(total / active.clip(1), mask=~fired),
        "maximum": pa.array(highest),
        "minimum": pa.array(lowest, mask=np.full(len(lowest), state.bottom is None)),
        "quantiles": lists(found[fired].ravel(), np.where(fired, found.shape[1], 0), parts),
        "histogram": even(histogram, bins),
    }


def _fires_on(about: Described, state: LayerState) -> dict[str, pa.Array]:
    """Tokens that hold most of each feature's activation in the windows drawn at random."""
    drawn = state.drawn.ordered()
    keys, held = drawn.keys, drawn.activations.float().abs().numpy()
    feature, place, position = held.nonzero()
    token = about.windows[windows_of(keys).numpy()[feature, place], position]
    pairs, where = np.unique(np.stack([feature, token]), axis=1, return_inverse=True)
    mass = np.bincount(where.ravel(), held[feature, place, position], pairs.shape[1])
    share = mass / np.bincount(pairs[0], mass, len(keys))[pairs[0]]
    order = np.lexsort((pairs[1], -share, pairs[0]))
    rank = np.arange(len(order)) - np.searchsorted(pairs[0][order], pairs[0][order])
    chosen = order[rank < about.settings.tokens]
    lengths = np.bincount(pairs[0][chosen], minlength=len(keys))
    texts = [about.text_of[one] for one in pairs[1][chosen].tolist()]
    return {
        "fires_on": lists(texts, lengths, FEATURE_COLUMNS.field("fires_on").type),
        "fires_on_share": lists(
            share[chosen], lengths, FEATURE_COLUMNS.field("fires_on_share").type
        ),
    }


def _tokens(
    about: Described, seen: Unembedded | None, layer: int, through: str = ""
) -> dict[str, pa.Array]:
    """Tokens a feature promotes and suppresses; nulls without what they are scored by."""
    names = [f"{name}{through}" for name in ("promoted", "suppressed")]
    if seen is None:
        missing = [column for name in names for column in (name, f"{name}_score")]
        count = len(about.running.layers[layer].moments.total)
        return {name: pa.nulls(count, FEATURE_COLUMNS.field(name).type) for name in missing}
    found = [one.cpu().numpy() for one in seen.extremes(layer, about.settings.tokens)]
    columns = {}
    for name, scores, ids in zip(names, found[::2], found[1::2], strict=True):
        texts = [about.text_of[one] for one in ids.ravel().tolist()]
        lengths = np.full(len(ids), ids.shape[1])
        columns[name] = lists(texts, lengths, FEATURE_COLUMNS.field(name).type)
        columns[f"{name}_score"] = even(scores, FEATURE_COLUMNS.field(f"{name}_score").type)
    return columns


def _places(about: Described, layer: int) -> dict[str, pa.Array]:
    found = about.plane.places(about.model, layer).cpu().numpy()
    return {name: pa.array(found[:, axis]) for axis, name in enumerate(("x", "y"))}


def _others(about: Described, layer: int, count: int) -> dict[str, pa.Array]:
    """Neighbours and partners; none where the settings ask for none."""
    if about.settings.neighbours == 0:
        none = np.zeros(0)
        empty = places(none, none, none, np.zeros(count, dtype=np.int64))
        return dict.fromkeys(("inputs", "outputs", "similar", "together"), empty)
    near = about.neighbours
    rows = slice(near.starts[layer], near.starts[layer] + count)
    found = {
        name: _nearest(getattr(near, name), rows, near.starts)
        for name in ("inputs", "outputs", "similar")
    }
    partners = about.sample.partners(layer, about.settings.neighbours)
    lengths = np.diff(partners.starts)
    return {
        **found,
        "together": places(partners.layer, partners.feature, partners.share, lengths),
    }


def _nearest(found: Nearest, rows: slice, starts: dict[int, int]) -> pa.ListArray:
    weights, columns = (part[rows].cpu().numpy() for part in (found.weights, found.columns))
    there = (columns != NOBODY) & (weights != 0)
    layers, begins = (np.array(list(part)) for part in (starts, starts.values()))
    at = np.searchsorted(begins, columns[there], side="right") - 1
    feature = columns[there] - begins[at]
    return places(layers[at], feature, weights[there], there.sum(1))


def _sampled(state: LayerState) -> Int[np.ndarray, "sampled kept"]:
    return np.concatenate([part.cpu().numpy() for part in state.sampled])
