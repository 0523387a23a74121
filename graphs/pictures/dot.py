"""The DOT language, one function a statement, safe against any text.

Text never becomes markup: a label is always a quoted string, so `<bos>` stays `<bos>`, and
backslashes, quotes and ampersands are escaped. Coordinates are points, y upward.
"""

from collections.abc import Iterable

from graphs.words import clipped, visible

LONGEST = 1000
"""Characters of a text that is drawn: Graphviz reads no string of more than 16,384 bytes, and one
character may be spelled with eleven."""


def text(value: str) -> str:
    r"""`value` as it will be read, line breaks included; the rest of a very long text is left out.

    >>> print(text('"AT&T"\n<bos> \\'))
    \"AT&amp;T\"\n<bos> \\
    """
    lines = (
        visible(line).replace("\\", "\\\\").replace("&", "&amp;")
        for line in clipped(value, LONGEST).split("\n")
    )
    return "\\n".join(lines).replace('"', '\\"')


def quoted(value: str | float) -> str:
    """An attribute value or a name; strings must come from `text` or from this package."""
    return f'"{value:.1f}"' if isinstance(value, float) else f'"{value}"'


def attributes(pairs: dict[str, str | float]) -> str:
    """A list of attributes.

    >>> attributes({"shape": "box", "width": 1.25})
    '[shape="box" width="1.2"]'
    """
    return "[" + " ".join(f"{key}={quoted(value)}" for key, value in pairs.items()) + "]"


def node(name: str, centre: tuple[float, float], **pairs: str | float) -> str:
    """A node pinned at `centre`.

    >>> node("texas", (12.0, 30.0), label="Texas")
    '"texas" [label="Texas" pos="12.0,30.0!"];'
    """
    place = f"{centre[0]:.1f},{centre[1]:.1f}!"
    return f"{quoted(name)} {attributes(pairs | {'pos': place})};"


def hidden(name: str, centre: tuple[float, float]) -> str:
    """A point that is not drawn, for something else to hold on to."""
    return node(name, centre, style="invis", shape="point", width=0.01, height=0.01, label="")


def edge(
    source: str,
    target: str,
    route: Iterable[float],
    head: tuple[float, float] | None = None,
    **pairs: str | float,
) -> str:
    """Cubic Bézier curves along `route`, x and y of 3 n + 1 points one after the other.

    `head` is where an arrow's head ends that begins at the end of the route.
    """
    numbers = [f"{number:.1f}" for number in route]
    pos = " ".join(f"{x},{y}" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    if head is not None:
        pos = f"e,{head[0]:.1f},{head[1]:.1f} {pos}"
    return f"{quoted(source)} -> {quoted(target)} {attributes(pairs | {'pos': pos})};"


def rectangle(name: str, box: tuple[float, float, float, float], fill: str, tooltip: str) -> str:
    """A filled rectangle under everything: left, low, right, high.

    Graphviz paints clusters below edges and nodes, and keeps a cluster only around a node.
    """
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    inside = hidden(name, centre)
    bounds = ",".join(f"{value:.1f}" for value in box)
    pairs: dict[str, str | float] = {
        "bb": bounds, "style": "filled", "fillcolor": fill, "color": fill, "penwidth": 0.0,
        "id": name.replace(" ", "_"), "tooltip": text(tooltip),
    }  # fmt: skip
    return f"subgraph {quoted('cluster ' + name)} {{ graph {attributes(pairs)}; {inside} }}"


def digraph(title: str, statements: Iterable[str], **pairs: str | float) -> str:
    """The whole text: every node fixed, edges under nodes, nothing translated by browsers."""
    fixed: dict[str, str | float] = {
        "outputorder": "edgesfirst", "splines": "true", "notranslate": "true", "overlap": "true",
        "bgcolor": "white", "margin": "0.1", "pad": "0.1", "fontname": "Helvetica",
    }  # fmt: skip
    head = [
        f"digraph {quoted(text(title))} {{",
        f"graph {attributes(fixed | pairs)};",
        'node [fontname="Helvetica" fixedsize="true" fontcolor="#222222"];',
        'edge [dir="none"];',
    ]
    return "\n".join([*head, *statements, "}", ""])
