"""How nodes and edges look: shapes, sizes, colours."""

from typing import Any

from graphs.pictures import dot
from graphs.pictures.placement import Glyph, text_width
from graphs.schema import NodeKind

FONT = 9.0
"""Size of a label, in points."""
FILL = {"path": "#ffe3b3", "answer": "#fff2c4", "error": "#dcdcdc"}
COLOURS = {
    "excites": ("#1b7837", "#5aae61cc", "#5aae6155"),
    "inhibits": ("#762a83", "#9970abcc", "#9970ab55"),
    "error": ("#8a8a8a", "#a5a5a5cc", "#a5a5a555"),
}
"""Of strong, middle and weak edges."""
TIERS = (25, 80)
"""How many edges are strong, and how many strong or middle."""


def box(text: str) -> Glyph:
    """A box that holds `text`."""
    lines = text.split("\n")
    width = max(text_width(line, FONT) for line in lines)
    return Glyph(max(width + 12, 22.0), 7 + 11 * len(lines), text)


def shape(glyph: Glyph, kind: str) -> dict[str, Any]:
    """Attributes of a node's shape.

    Returns:
        DOT name -> value; width and height in inches.
    """
    form = "box" if glyph.text else "diamond" if kind == NodeKind.ERROR else "circle"
    return {
        "class": f"{kind}{' labelled' if glyph.text else ''}",
        "shape": form,
        "width": f"{glyph.width / 72:.4f}",
        "height": f"{glyph.height / 72:.4f}",
        "label": dot.text(glyph.text),
        "fontsize": FONT,
        "style": "rounded,filled" if form == "box" else "filled",
    }


def look(kind: str, marked: bool, answer: bool) -> dict[str, Any]:
    """Attributes of a node's colours, on the main path or the answer or neither.

    Returns:
        DOT name -> value; widths in points.
    """
    if kind == NodeKind.ERROR:
        return {"fillcolor": FILL["error"], "color": "#999999", "penwidth": 0.6}
    fill = FILL["path"] if marked else FILL["answer"] if answer else "#ffffff"
    return {"fillcolor": fill, "color": "#333333", "penwidth": 1.8 if marked or answer else 0.8}


def tier(rank: int) -> int:
    """0 strong, 1 middle, 2 weak: of the edge that is the `rank`-th most influential, from 1.

    >>> tier(25), tier(26), tier(81)
    (0, 1, 2)
    """
    return sum(rank > bound for bound in TIERS)
