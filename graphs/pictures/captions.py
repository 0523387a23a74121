"""The words around a picture: title, names of rows and columns, legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from graphs import validation_summary, words
from graphs.pictures import dot, placement
from graphs.pictures.marks import COLOURS, FONT, box, look, shape
from graphs.pictures.placement import Glyph
from graphs.pictures.render import INSTALL
from graphs.pictures.scene import Content, Scene, Style, compose
from graphs.schema import NodeKind

INK, GREY = "#222222", "#777777"
BIG: dict[str, Any] = {"fontcolor": INK, "fontsize": 13.0, "fontname": "Helvetica-Bold"}
BETWEEN = "   ·   "
LEFT = "\\l"
"""What DOT ends a line with that begins at the left."""
HEADER = 12.0
"""Room for the tokens above a tall scene."""


def row_names(scene: Scene) -> list[str]:
    """Names of the rows, from the lowest up."""
    return list(scene.bands.values())


def captions(scene: Scene) -> list[str]:
    """Names of rows and columns, title and legend."""
    columns, rows = scene.places.columns, scene.places.rows
    names = row_names(scene)
    statements = [
        _label(f"row {at}", name, (-30.0, middle, 50.0))
        for at, (name, middle) in enumerate(zip(names, _middles(rows), strict=True))
    ]
    statements += [
        _label(f"column {at}", str(at), (middle, rows[0] - 8, 20.0), size=7.0)
        for at, middle in enumerate(_middles(columns))
    ]
    if _tall(scene):
        statements += [
            _label(f"header {at}", words.clipped(token, 16), (middle, rows[-1] + 8, 40.0), size=8.0)
            for at, (token, middle) in enumerate(zip(scene.tokens, _middles(columns), strict=True))
        ]
    return [*statements, *_title(scene), *_legend(scene)]


def _middles(borders: np.ndarray) -> list[float]:
    return ((borders[:-1] + borders[1:]) / 2).tolist()


def _label(
    name: str,
    text: str,
    box: tuple[float, float, float],
    size: float = FONT,
    end: str = "",
    **more: str | float,
) -> str:
    """A line of text without a frame, in the middle of `box`: x, y, width; `end` may be `LEFT`."""
    pairs: dict[str, str | float] = {
        "shape": "plaintext", "label": dot.text(text) + end,
        "width": f"{box[2] / 72:.4f}", "height": 0.2, "fontsize": size, "fontcolor": GREY,
        "id": name.replace(" ", "_"), "class": name.split(" ")[0],
    }  # fmt: skip
    return dot.node(name, (box[0], box[1]), **pairs | more)


def _title(scene: Scene) -> list[str]:
    top = float(scene.places.rows[-1]) + (HEADER if _tall(scene) else 0.0)
    plain: dict[str, Any] = {}
    facts = _facts(scene)
    lines = [(question(scene), BIG, 20.0 + 14 * len(facts), 1.1)]
    lines += [(text, plain, 14.0 * (len(facts) - at), 1.0) for at, text in enumerate(facts)]
    statements = []
    for at, (text, font, rise, bold) in enumerate(lines):
        needed = bold * placement.text_width(text, font.get("fontsize", FONT)) + 8
        width = max(float(scene.places.columns[-1]), needed)
        place = (width / 2, top + rise, width)
        statements.append(_label(f"title {at}", text, place, end=LEFT, **font))
    return statements


def question(scene: Scene) -> str:
    """Prompt and answer; of a long prompt, its end."""
    prompt = words.visible(str(scene.content.metadata.get("prompt") or " ".join(scene.tokens)))
    room = max(48, int(scene.places.columns[-1] / 9))
    logits = [row for row in scene.rows if row["kind"] == NodeKind.LOGIT]
    answer = max(logits, key=lambda row: row["probability"] or 0, default=None)
    return (
        f"{words.clipped_front(prompt, room)}  →  {words.logit(answer) if answer else 'no target'}"
    )


def _tall(scene: Scene) -> bool:
    """Whether the tokens are far from the logits, and named again above them."""
    return scene.grid.shape[0] > 12


def _facts(scene: Scene) -> list[str]:
    """What of the graph is shown, and how much of the model it explains, on one to four lines."""
    content, shown = scene.content, len(scene.drawn)
    nodes, edges = content.nodes.num_rows, content.edges.num_rows
    pruned = content.metadata.get("pruned")
    parts = [f"{nodes:,} nodes, {edges:,} edges, unpruned"]
    if pruned:
        parts = [
            f"{nodes:,} of {pruned['total_nodes']:,} nodes, "
            f"{edges:,} of {pruned['total_edges']:,} edges "
            f"(thresholds {pruned['nodes']:g} and {pruned['edges']:g}"
            f"{words.steering(pruned)})"
        ]
    if shown < edges:
        parts.append(f"{shown:,} strongest edges drawn, {edges - shown:,} hidden")
    scores = words.scores(content.scores, content.metadata, 2)
    explained = [f"{name} {scores[name]}" for name in ("replacement", "completeness")]
    said = validation_summary.subtitle(content.metadata)
    verdict = [line for line in (said, words.held(content.metadata)) if line]
    if not content.scores.uncovered > 0:
        return [BETWEEN.join(parts + explained), *verdict]
    beyond = f"uncovered {scores['uncovered']} (features beyond the cap)"
    return [BETWEEN.join(parts), BETWEEN.join([*explained, beyond]), *verdict]


Draw = Callable[[str, float, float], tuple[float, list[str]]]
"""From a name, a left end and a height to a width and statements."""


def _legend(scene: Scene) -> list[str]:
    """Every kind of mark with its meaning, in lines under the scene."""
    right = float(scene.places.columns[-1])
    x, y = 0.0, float(scene.places.rows[0]) - 34
    statements: list[str] = []
    for at, (meaning, draw) in enumerate(_meanings(scene)):
        room = placement.text_width(meaning, 8.0) + 4
        if x > 0 and x + 34 + room > right:
            x, y = 0.0, y - 22
        width, parts = draw(f"legend {at}", x, y)
        middle = (x + width + 4 + room / 2, y, room)
        statements += [*parts, _label(f"meaning {at}", meaning, middle, size=8.0, end=LEFT)]
        x += width + room + 18
    return statements


def _sample(glyph: Glyph, kind: str, marked: bool = False) -> Draw:
    def draw(name: str, x: float, y: float) -> tuple[float, list[str]]:
        pairs = shape(glyph, kind) | look(kind, marked, False) | {"class": "legend"}
        return glyph.width, [dot.node(name, (x + glyph.width / 2, y), **pairs)]

    return draw


def _stroke(colour: str, style: str) -> Draw:
    def draw(name: str, x: float, y: float) -> tuple[float, list[str]]:
        ends = [(f"{name} start", x), (f"{name} end", x + 24)]
        look: dict[str, Any] = {"class": "legend", "color": colour, "style": style}
        route = (x, y, x + 8, y, x + 16, y, x + 24, y)
        line = dot.edge(ends[0][0], ends[1][0], route, penwidth=2.0, **look)
        return 24.0, [*(dot.hidden(end, (at, y)) for end, at in ends), line]

    return draw


def _meanings(scene: Scene) -> tuple[tuple[str, Draw], ...]:
    """Every kind of mark, and of words where the labels were measured."""
    words = MEASURED if scene.content.metadata.get("labels") else PROMOTED
    if scene.heads is None:
        return words + MARKS + SIGNS + WIDTH
    heads = tuple((name, _stroke(colour, "solid")) for name, colour in scene.heads.colours.items())
    return words + MARKS + heads + (("inhibits", _stroke(INK, "dashed")),) + WIDTH


PROMOTED: tuple[tuple[str, Draw], ...] = (
    ("feature, by what it promotes", _sample(box("label"), NodeKind.FEATURE)),
)
MARKS: tuple[tuple[str, Draw], ...] = (
    ("other feature, area = influence", _sample(Glyph(9, 9), NodeKind.FEATURE)),
    ("strongest path through features", _sample(box("label"), NodeKind.FEATURE, marked=True)),
    ("reconstruction error", _sample(Glyph(10, 10), NodeKind.ERROR)),
)
SIGNS: tuple[tuple[str, Draw], ...] = (
    ("excites", _stroke(COLOURS["excites"][0], "solid")),
    ("inhibits", _stroke(COLOURS["inhibits"][0], "dashed")),
    ("from an error", _stroke(COLOURS["error"][0], "solid")),
)
"""Colours of edges, unless they are those of heads."""
WIDTH: tuple[tuple[str, Draw], ...] = (("width = influence on the answer", lambda *_: (0.0, [])),)


MEASURED: tuple[tuple[str, Draw], ...] = (
    (
        "feature, by where it fires: on a token, after it, near it (4 tokens) or with it before; "
        "where the model says it",
        _sample(box("label"), NodeKind.FEATURE),
    ),
    ("+4: or any of four more", lambda *_: (0.0, [])),
    ("e.g.: no label is true enough (F1 below 0.5), an example", lambda *_: (0.0, [])),
    ("≈ polysemantic", lambda *_: (0.0, [])),
)
"""What the words of labels mean whose truth was measured (tracer/features/labels)."""


def summary_html(content: Content, paths: Sequence[str]) -> str:
    """Prompt, answer, sizes, scores and `paths`, for a notebook without Graphviz."""
    shown = compose(content, Style())
    lines = "".join(f"<li>{escape(path)}</li>" for path in paths)
    return (
        f"<p><b>{escape(question(shown))}</b><br>{escape(BETWEEN.join(_facts(shown)))}</p>"
        f"<ol>{lines}</ol><p>{escape(INSTALL)}</p>"
    )
