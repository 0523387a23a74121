"""The summary of a graph as DOT text: stacked boxes, few edges, 8 cm wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from graphs import validation_summary, words
from graphs.groups import Group
from graphs.pictures import dot
from graphs.pictures.captions import LEFT
from graphs.pictures.placement import text_width
from graphs.pictures.render import write_picture
from graphs.pictures.routing import Points
from graphs.pictures.scene import Content
from graphs.pictures.summary import Box, Link, Summary, summarise
from graphs.pictures.summary_places import FONT, SMALL, WIDTH, Placed, placed
from graphs.schema import NodeKind

LOOK = {
    "token": ("box", "filled", "#ffffff", "#8a8a8a"),
    "group": ("box", "filled,rounded", "#ececec", "#8f8f8f"),
    "answer": ("box", "filled,rounded", "#fff2c4", "#333333"),
    "other": ("box", "filled,rounded", "#f7f7f7", "#b5b5b5"),
    "error": ("box", "filled,diagonals", "#f7f7f7", "#b5b5b5"),
}
"""Kind -> shape, style, fill, line."""
INK, GREY, BADGE = "#222222", "#666666", "#b3261e"
EXCITES, INHIBITS, PALE = "#1b7837", "#762a83", "#9a9a9a"
ARROW = 4.6
"""Length of an arrow's head."""
DPI = 300.0
"""Of a PNG: printed 8 cm wide it is sharp."""


def draw_summary(
    path: Path,
    content: Content,
    groups: Sequence[Group],
    measured: Mapping[str, float] | None = None,
) -> None:
    """Write the summary in the format that the suffix of `path` names.

    Raises:
        GraphError: an unknown suffix, Graphviz is missing (not for .dot), or the place cannot be
            written.
    """
    write_picture(path, partial(summary_source, content, groups, measured))


def summary_source(
    content: Content,
    groups: Sequence[Group],
    measured: Mapping[str, float] | None = None,
    bitmap: bool = False,
) -> str:
    """DOT text of a graph's summary.

    Args:
        content: of the graph, pruned.
        groups: of its nodes; features in none are boxes of their own or `other`.
        measured: node id -> by how much the answer's logit falls when the node is zeroed.
        bitmap: for PNG.
    """
    summary = summarise(content, groups, measured)
    places = placed(summary)
    statements = [
        *(part for at in range(len(summary.boxes)) for part in _box(at, summary.boxes[at], places)),
        *_edges(summary, places),
        *_title(content, places.height),
        *_legend(content, summary),
    ]
    dpi = {"dpi": DPI} if bitmap else {}
    return dot.digraph(_question(content), statements, **{"pad": "0.03", "margin": "0"}, **dpi)


def _box(at: int, box: Box, places: Placed) -> list[str]:
    left, low, right, high = places.box[at].tolist()
    form, style, fill, line = LOOK[box.kind]
    pairs: dict[str, str | float] = {
        "shape": form, "style": style, "fillcolor": fill, "color": line,
        "width": f"{(right - left) / 72:.4f}", "height": f"{(high - low) / 72:.4f}",
        "label": "", "penwidth": f"{1.4 if box.kind == 'answer' else 0.7}",
    }  # fmt: skip
    middle = ((left + right) / 2, (low + high) / 2)
    stack = min(len(box.members), 3) - 1 if box.kind == "group" else 0
    found = [
        dot.node(f"under {at} {step}", (middle[0] + 2.2 * step, middle[1] + 2.2 * step),
                 **pairs | {"fillcolor": "#dedede", "class": "stack"})
        for step in range(stack, 0, -1)
    ]  # fmt: skip
    note = places.notes[at]
    about = {"id": f"box_{at}", "class": box.kind, "tooltip": dot.text(_tooltip(box))}
    found.append(dot.node(f"box {at}", middle, **pairs | about))
    for number, text in enumerate(places.lines[at]):
        y = high - 3 - 9.0 * (number + 0.5)
        found.append(_text(f"name {at} {number}", text, (middle[0], y, right - left), INK, FONT))
    if note:
        found.append(_text(f"note {at}", note, (middle[0], low + 6, right - left), GREY, SMALL))
    if box.measured is not None:
        found.append(_badge(at, box.measured, (right, high)))
    return found


def _text(
    name: str, text: str, box: tuple[float, float, float], colour: str, size: float, end: str = ""
) -> str:
    return dot.node(
        name, (box[0], box[1]), shape="plaintext", style="", label=dot.text(text) + end,
        width=f"{box[2] / 72:.4f}", height="0.2", fontsize=size, fontcolor=colour,
        **{"class": name.split(" ")[0], "id": name.replace(" ", "_")},
    )  # fmt: skip


def _badge(at: int, change: float, corner: tuple[float, float]) -> str:
    """What zeroing the box's features one by one does to the answer's logit."""
    text = f"{change:+.1f}".replace("-", "−")
    return dot.node(
        f"badge {at}", (corner[0] - 2, corner[1] + 1), shape="box", style="filled,rounded",
        label=text, width=f"{(4.4 * len(text) + 4) / 72:.4f}", height="0.1111", fontsize=SMALL,
        fontcolor="#ffffff", fillcolor=BADGE, color="#ffffff", penwidth="0.6",
        **{"class": "badge", "id": f"badge_{at}"},
    )  # fmt: skip


def _tooltip(box: Box) -> str:
    lines = [words.visible(box.name), f"{len(box.members)} nodes"]
    if box.share is not None:
        lines.append(f"{words.percent(box.share)} of the answer")
    if box.measured is not None:
        lines.append(f"zeroed one by one: {box.measured:+.3g} of the answer's logit in all")
    return "\n".join(lines)


def _edges(summary: Summary, places: Placed) -> list[str]:
    """Weakest first."""
    peak = max((abs(link.influence) for link in summary.links), default=1.0)
    order = sorted(range(len(summary.links)), key=lambda at: abs(summary.links[at].influence))
    return [_edge(summary.boxes, summary.links[at], places.routes[at], peak) for at in order]


def _edge(boxes: list[Box], link: Link, route: Points, peak: float) -> str:
    excites = link.influence > 0
    pale = boxes[link.source].kind in ("other", "error")
    colour = PALE if pale else EXCITES if excites else INHIBITS
    width = 0.5 + 2.6 * (abs(link.influence) / peak) ** 0.5
    body, head = _with_head(route, ARROW if excites else 1.2)
    names = [words.visible(boxes[end].name) for end in (link.source, link.target)]
    sign = "→" if excites else "⊣"
    said = f"{names[0]} {sign} {names[1]}\n{100 * link.influence:+.1f}% of the answer"
    return dot.edge(
        f"box {link.source}", f"box {link.target}", body, head,
        id=f"link_{link.source}__{link.target}", color=f"{colour}d8", penwidth=f"{width:.2f}",
        dir="forward", arrowhead="normal" if excites else "tee", arrowsize="0.46",
        style="solid" if excites else "dashed", tooltip=dot.text(said),
        **{"class": "excites" if excites else "inhibits"},
    )  # fmt: skip


def _with_head(route: Points, length: float) -> tuple[list[float], tuple[float, float]]:
    """A route that leaves room for the arrow's head, and where the head ends."""
    tip, before = route[-1], route[-2]
    way = tip - before
    short = route.copy()
    short[-1] = tip - way / max(float(np.hypot(*way)), 1e-9) * length
    short[-2] = short[-1] - way * 0.9
    return short.ravel().tolist(), (float(tip[0]), float(tip[1]))


def _question(content: Content) -> str:
    rows = [row for row in content.nodes.to_pylist() if row["kind"] == NodeKind.LOGIT]
    answer = max(rows, key=lambda row: row["probability"] or 0, default=None)
    prompt = words.visible(str(content.metadata.get("prompt") or ""))
    return f"{words.clipped_front(prompt, 90)} → {words.logit(answer) if answer else 'no target'}"


def _wrapped(text: str, size: float) -> list[str]:
    """Lines no wider than the picture."""
    letters = int(len(text) * WIDTH / max(text_width(text, size), 1.0))
    return textwrap.wrap(text, max(letters - 1, 10)) if len(text) > letters else [text]


def _title(content: Content, top: float) -> list[str]:
    lines = _wrapped(_question(content), 8.5)[:3]
    y = top + 4 + 10.0 * len(lines)
    return [
        _text(f"title {at}", line, (WIDTH / 2, y - 10.0 * at, WIDTH), INK, 8.0, LEFT)
        for at, line in enumerate(lines)
    ]


def _beyond(content: Content) -> str:
    capped = content.scores.uncovered > 0
    return "was pruned away or lies beyond the cap" if capped else "was pruned away"


def _legend(content: Content, summary: Summary) -> list[str]:
    """What the marks mean and where the answer comes from, under the boxes."""
    said = [
        "Arrows excite, dashed bars inhibit, by influence. ×n: so many features in one box.",
        "Percent: of the answer, what paths lead back to without passing “other”, which is too "
        f"small to draw; {words.percent(summary.lost)} more ends in what {_beyond(content)}.",
    ]
    if any(box.measured is not None for box in summary.boxes):
        said.append("Red: the answer's logit with these features zeroed one by one, summed.")
    if verdict := validation_summary.subtitle(content.metadata):
        said.append(verdict)
    if held := words.held(content.metadata):
        said.append(held)
    lines = [line for text in said for line in _wrapped(text, SMALL)]
    return [
        _text(f"legend {at}", line, (WIDTH / 2, -9 - 7.5 * at, WIDTH), GREY, SMALL, LEFT)
        for at, line in enumerate(lines)
    ]
