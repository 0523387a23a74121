"""A dictionary's decoders as a map: a web page of its own, and a small picture on a feature's page.

The page runs nothing and fetches nothing: a point is a link to an entry of the same page, which
the style sheet shows when it is the one pointed at.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, Int

from graphs import words
from graphs.pictures.charts import COLOURS
from tracer.errors import TraceError
from tracer.features.document import document, origin
from tracer.features.feature import Feature, Place
from tracer.features.store import FeatureStore

SIZE, MARGIN = 760, 24
"""Of the page's map, in pixels."""
SMALL = 300
"""Of the picture on a feature's page."""
MOST, FEW, NAMED = 2000, 1500, 24
"""Points on the map and on the picture, and points whose names stand beside them."""
WIDE, HIGH = 120, 11
"""Pixels that a name takes."""
STYLE = """
svg a:focus circle,svg a:hover circle{stroke:#000;stroke-width:1.5}
.e{display:none;border:1px solid #ccc;border-radius:6px;padding:.5rem .9rem;margin:.5rem 0}
.e:target{display:block}
"""


@dataclass(frozen=True, eq=False)
class Points:
    """Where some features lie, the most active first."""

    layer: Int[np.ndarray, " points"]
    feature: Int[np.ndarray, " points"]
    place: Float[np.ndarray, "points axes"]
    of: int
    """Features in all."""

    @classmethod
    def most_active(cls, store: FeatureStore, count: int) -> "Points":
        """The features that fire at most tokens, ties by place.

        Raises:
            TraceError: the store is from before there were maps.
        """
        parts = [_columns(store, layer) for layer in store.layers]
        layer, feature, active, x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((feature, layer, -active))[:count]
        places = np.stack([x, y], axis=1)
        return cls(layer[order], feature[order], places[order], len(layer))

    def pixels(self, size: int, also: Sequence[float] = ()) -> Float[np.ndarray, "points axes"]:
        """Places in a square picture, both axes to one scale, y upwards; `also` is appended."""
        places = np.concatenate([self.place, np.asarray(also, dtype=float).reshape(-1, 2)])
        low, high = places.min(0), places.max(0)
        scale = (size - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
        at = (places - (low + high) / 2) * scale
        return size / 2 + at * [1, -1]


def map_page(store: FeatureStore, most: int = MOST) -> str:
    """A whole HTML document: the map, and an entry a point that is shown when it is chosen.

    Args:
        store: whose dictionary.
        most: at most so many points, those that fire most.

    Returns:
        HTML in UTF-8, self-contained.

    Raises:
        TraceError: the store is from before there were maps.
    """
    points = Points.most_active(store, most)
    title = "Map of the dictionary"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="grey">{escape(origin(store))}</p>',
        f"<p>{escape(_says(store, points))}</p>",
        _picture(store, points),
        *_entries(store, points),
    ]
    return document(title, body, STYLE)


def picture(store: FeatureStore, feature: Feature) -> str:
    """The map with one feature and those that write alike, as an SVG; "" without a map."""
    if feature.row.get("x") is None:
        return ""
    points = Points.most_active(store, FEW)
    near = [(one["layer"], one["feature"]) for one in feature.similar]
    marked = [(feature.layer, feature.feature), *near]
    also = [value for place in marked for value in _place(store, place)]
    pixels = points.pixels(SMALL, also)
    drawn = [_dot(at, 1.2, "#bbb") for at in pixels[: len(points.layer)]]
    for rank, (place, at) in reversed(
        [*enumerate(zip(marked, pixels[len(points.layer) :], strict=True))]
    ):
        name = f"{place[0]}/{place[1]} {store.name(*place)}"
        drawn.append(_dot(at, 3 if rank else 5, COLOURS[0] if rank else COLOURS[1], name))
    return (
        f'<div><h2>Map</h2><svg width="{SMALL}" height="{SMALL}" viewBox="0 0 {SMALL} {SMALL}" '
        f'role="img" aria-label="where decoders lie">{"".join(drawn)}</svg>'
        '<p class="grey">Decoders along the two directions in which they spread most; orange: this '
        "feature, blue: those that write alike.</p></div>"
    )


def _columns(store: FeatureStore, layer: int) -> tuple[np.ndarray, ...]:
    table = store.features(layer)
    if "x" not in table.column_names:
        raise TraceError(
            f"{store.path}: was built before stores held a map; build it anew to have one"
        )
    names = ("feature", "active", "x", "y")
    feature, active, x, y = (table[name].to_numpy() for name in names)
    return np.full(len(feature), layer), feature, active, x, y


def _place(store: FeatureStore, place: Place) -> list[float]:
    layer, feature = place
    return [float(store.features(layer)[axis][feature].as_py()) for axis in ("x", "y")]


def _says(store: FeatureStore, points: Points) -> str:
    shown = len(points.layer)
    which = f"All {shown:,} features" if shown == points.of else (
        f"The {shown:,} features of {points.of:,} that fire most"
    )  # fmt: skip
    share = words.percent(sum(store.about["map_share"]))
    return (
        f"{which}, by what their decoders write at unit length, along the two directions in which "
        f"all decoders spread most; these hold {share} of the spread, so points that lie close "
        "need not write alike. Choose a point to read what it is."
    )


def _picture(store: FeatureStore, points: Points) -> str:
    pixels, layers = points.pixels(SIZE), sorted({*points.layer.tolist()})
    colour = {layer: COLOURS[at % len(COLOURS)] for at, layer in enumerate(layers)}
    drawn = []
    for rank, (layer, feature, at) in enumerate(
        zip(points.layer.tolist(), points.feature.tolist(), pixels, strict=True)
    ):
        name = store.name(layer, feature)
        dot = _dot(at, 4 if rank < NAMED else 2.6, colour[layer], f"{layer}/{feature} {name}")
        drawn.append(f'<a href="#f{layer}-{feature}">{dot}</a>')
    drawn += _names(store, points, pixels)
    key = "".join(
        f'<tspan fill="{colour[layer]}"> ● layer {layer} </tspan>' for layer in layers[:16]
    )
    return (
        f'<svg width="{SIZE}" height="{SIZE}" viewBox="0 0 {SIZE} {SIZE}" font-family="sans-serif">'
        f'<text x="8" y="14" font-size="11">{key}</text>{"".join(drawn)}</svg>'
    )


def _names(
    store: FeatureStore, points: Points, pixels: Float[np.ndarray, "points axes"]
) -> Iterable[str]:
    """Names beside the most active points, less those that would lie on another."""
    taken: list[tuple[float, float]] = []
    for layer, feature, (x, y) in zip(
        points.layer[:NAMED].tolist(), points.feature[:NAMED].tolist(), pixels[:NAMED], strict=True
    ):
        if any(abs(x - a) < WIDE and abs(y - b) < HIGH for a, b in taken):
            continue
        taken.append((x, y))
        name = escape(words.clipped(store.name(layer, feature), 22))
        yield f'<text x="{x + 6:.1f}" y="{y + 3:.1f}" font-size="10">{name}</text>'


def _entries(store: FeatureStore, points: Points) -> Iterable[str]:
    """What is known of every point, in a few lines."""
    tables = {layer: store.features(layer) for layer in {*points.layer.tolist()}}
    for layer, feature in zip(points.layer.tolist(), points.feature.tolist(), strict=True):
        [row] = tables[layer].slice(feature, 1).to_pylist()
        alike = ", ".join(f"{one['layer']}/{one['feature']}" for one in row["similar"])
        lines = [
            f"fires at {words.percent(row['density'])} of tokens, on {_listed(row['fires_on'])}",
            f"promotes {_listed(row['promoted'])}",
            *([f"writes like {alike}"] if alike else []),
        ]
        said = "".join(f"<p>{escape(line)}</p>" for line in lines)
        title = escape(f"{layer}/{feature}: {store.name(layer, feature)}")
        yield f'<div class="e" id="f{layer}-{feature}"><p><strong>{title}</strong></p>{said}</div>'


def _listed(tokens: Sequence[str]) -> str:
    return ", ".join(words.token(token) for token in tokens) or "nothing"


def _dot(at: Float[np.ndarray, " axes"], radius: float, colour: str, name: str = "") -> str:
    x, y = at.tolist()
    title = f"<title>{escape(name)}</title>" if name else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">{title}</circle>'
