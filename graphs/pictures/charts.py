"""Small charts as SVG text: points, lines, and a heat map. No plotting library."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from graphs.words import visible

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 44
COLOURS = ("#1f5fa8", "#c2571a", "#3b8a4f", "#8a8a8a", "#7a4fa0", "#b8860b", "#2a8c8c")
CELL_WIDTH, CELL_HEIGHT = 44, 26
LONGEST_NAME = 26
"""Letters of a name beside a point."""
LONGEST = 12
"""Letters of a text that a cell shows."""
TICKS = 4


@dataclass(frozen=True)
class Axis:
    """From values to pixels, in a straight line."""

    label: str
    low: float
    high: float

    @classmethod
    def around(cls, label: str, values: Sequence[float], zero: bool = True) -> "Axis":
        """An axis that holds all finite values, and 0 where `zero`."""
        finite = [value for value in values if math.isfinite(value)]
        held = [*finite, 0.0] if zero or not finite else finite
        low, high = min(held), max(held)
        return cls(label, low, high if high > low else low + 1)

    def pixel(self, value: float, first: float, last: float) -> float:
        """Where a value stands between two pixels."""
        return first + (value - self.low) / (self.high - self.low) * (last - first)

    def ticks(self) -> list[float]:
        """A few values to write beside the axis."""
        return [self.low + (self.high - self.low) * step / TICKS for step in range(TICKS + 1)]


def points(title: str, x: tuple[str, Sequence[float]], y: tuple[str, Sequence[float]]) -> str:
    """A scatter of one set of points; each axis comes with its label."""
    across, up = (Axis.around(*axis) for axis in (x, y))
    place = _placing(across, up)
    dots = [
        f'<circle cx="{place(a, b)[0]:.1f}" cy="{place(a, b)[1]:.1f}" r="2.2" '
        f'fill="{COLOURS[0]}" fill-opacity="0.5"/>'
        for a, b in zip(x[1], y[1], strict=True)
    ]
    return _chart(title, across, up, dots)


def named_points(
    title: str,
    x: str,
    y: str,
    places: Mapping[str, tuple[float, float]],
    front: Sequence[str] = (),
) -> str:
    """A point for each name, written beside it; those that are not finite are left out.

    Args:
        title: above the chart.
        x: label of the axis across.
        y: label of the axis up.
        places: where each stands.
        front: names that a line joins, in this order.
    """
    known = {name: at for name, at in places.items() if all(map(math.isfinite, at))}
    across, up = (
        Axis.around(label, [at[side] for at in known.values()]) for side, label in enumerate((x, y))
    )
    place, drawn = _placing(across, up), []
    joined = [place(*known[name]) for name in front if name in known]
    if joined:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in joined)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[3]}"/>')
    for row, (name, at) in enumerate(known.items()):
        colour, (a, b) = COLOURS[row % len(COLOURS)], place(*at)
        drawn.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>')
        beside, anchor = (-7, "end") if a > (LEFT + WIDTH - RIGHT) / 2 else (7, "start")
        said = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        drawn.append(_text(a + beside, b + 4, said, anchor=anchor, colour=colour))
    return _chart(title, across, up, drawn)


def lines(
    title: str,
    x: tuple[str, Sequence[float]],
    label: str,
    series: Mapping[str, Sequence[float | None]],
) -> str:
    """Lines over shared x values; None leaves a point out."""
    everything = [value for values in series.values() for value in values if value is not None]
    across, up = Axis.around(*x, zero=False), Axis.around(label, everything)
    place, drawn = _placing(across, up), []
    for row, (name, values) in enumerate(series.items()):
        colour = COLOURS[row % len(COLOURS)]
        known = [place(a, b) for a, b in zip(x[1], values, strict=True) if b is not None]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in known)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in known]
        drawn.append(_text(LEFT + 8, TOP + 12 + 14 * row, name, colour=colour))
    return _chart(title, across, up, drawn)


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Float[np.ndarray, "rows columns"],
    texts: Sequence[Sequence[str]] | None = None,
) -> str:
    """A table of numbers, blue below zero and red above; NaN stays empty.

    Args:
        title: above it.
        rows: their names, from the top.
        columns: their names.
        values: what colours the cells.
        texts: what to write into them instead of the numbers, a row each.
    """
    finite = np.abs(values[np.isfinite(values)])
    most = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    rows = [visible(name) for name in rows]
    left = 12 + 7 * max((len(name) for name in rows), default=0)
    said = [name for line in texts or () for name in line]
    wide = max([CELL_WIDTH, *(6 * len(name[:LONGEST]) + 8 for name in said)])
    width = left + wide * len(columns) + RIGHT
    height = TOP + CELL_HEIGHT * len(rows) + 30
    drawn = [_text(8, 18, title, size=12)]
    for down, name in enumerate(rows):
        middle = TOP + CELL_HEIGHT * (down + 0.5)
        drawn.append(_text(left - 6, middle + 4, name, anchor="end"))
        for across, value in enumerate(values[down].tolist()):
            text = f"{value:.2g}" if texts is None else texts[down][across][:LONGEST]
            if math.isfinite(value):
                drawn += _cell((left + wide * across, middle), wide, text, value / most)
    base = TOP + CELL_HEIGHT * len(rows) + 16
    drawn += [
        _text(left + wide * (across + 0.5), base, name[:8], anchor="middle")
        for across, name in enumerate(columns)
    ]
    return _svg(width, height, drawn)


def bars(
    title: str, label: str, bounds: Sequence[float], counts: Sequence[float], across: str
) -> str:
    """Counts between neighbouring bounds, a bar each, all of one width whatever the bounds.

    Args:
        title: above the chart.
        label: of the counts.
        bounds: one more than counts; some are written below.
        counts: at least one.
        across: what the bounds are.
    """
    up, width = Axis.around(label, counts), (WIDTH - LEFT - RIGHT) / len(counts)
    place = _placing(Axis(across, 0, len(counts)), up)
    base = HEIGHT - BOTTOM
    drawn = [
        f'<path d="M{x:.1f},{base}V{y:.1f}h{width:.1f}V{base}Z" fill="{COLOURS[0]}" '
        'fill-opacity="0.75"/>'
        for x, y in (place(at, count) for at, count in enumerate(counts) if count)
    ]
    step = max(1, len(counts) // 5)
    for at in range(0, len(counts) + 1, step):
        x = place(at, 0)[0]
        drawn.append(_text(x, HEIGHT - BOTTOM + 16, _number(bounds[at]), anchor="middle"))
    return _chart(title, Axis(across, 0, len(counts)), up, drawn, numbers=False)


def _cell(place: tuple[float, float], wide: float, text: str, share: float) -> list[str]:
    """One coloured cell with what is written in it; `place` is its left end's middle."""
    x, middle = place
    fade = round(255 * (1 - 0.75 * abs(share)))
    colour = f"rgb(255,{fade},{fade})" if share > 0 else f"rgb({fade},{fade},255)"
    return [
        f'<rect x="{x:.1f}" y="{middle - CELL_HEIGHT / 2:.1f}" width="{wide}" '
        f'height="{CELL_HEIGHT}" fill="{colour}"/>',
        _text(x + wide / 2, middle + 4, text, anchor="middle"),
    ]


def _placing(across: Axis, up: Axis) -> Callable[[float, float], tuple[float, float]]:
    def place(x: float, y: float) -> tuple[float, float]:
        return (
            across.pixel(x, LEFT, WIDTH - RIGHT),
            up.pixel(y, HEIGHT - BOTTOM, TOP),
        )

    return place


def _chart(title: str, across: Axis, up: Axis, drawn: Sequence[str], numbers: bool = True) -> str:
    """Axes, ticks and labels around what is drawn; `numbers` below the axis across as well."""
    place = _placing(across, up)
    frame = [
        f'<path d="M{LEFT},{TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#444"/>',
        _text(WIDTH / 2, 16, title, anchor="middle", size=12),
        _text(WIDTH / 2, HEIGHT - 8, across.label, anchor="middle"),
        f'<g transform="rotate(-90 12 {HEIGHT / 2})">'
        f"{_text(12, HEIGHT / 2, up.label, anchor='middle')}</g>",
    ]
    for x in across.ticks() if numbers else ():
        frame.append(_text(place(x, up.low)[0], HEIGHT - BOTTOM + 16, _number(x), anchor="middle"))
    for y in up.ticks():
        frame.append(_text(LEFT - 6, place(across.low, y)[1] + 4, _number(y), anchor="end"))
    return _svg(WIDTH, HEIGHT, [*frame, *drawn])


def _number(value: float) -> str:
    """A number of an axis: thousands written out, else three digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 10, colour: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{colour}">{escape(visible(text))}</text>'
    )


def _svg(width: float, height: float, drawn: Sequence[str]) -> str:
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
