"""From DOT to SVG, PNG and PDF, by Graphviz."""

import shutil
from collections.abc import Callable
from pathlib import Path

import graphviz

from graphs.exchange.files import writing
from graphs.schema import GraphError

FORMATS = ("svg", "png", "pdf")
INSTALL = (
    "pictures need Graphviz, whose program `neato` was not found: install it with "
    "`apt install graphviz`, `brew install graphviz` or `conda install graphviz`; "
    "DOT text and tables work without it"
)


def available() -> bool:
    """Whether Graphviz can be run."""
    return shutil.which("neato") is not None


def render(source: str, form: str) -> bytes:
    """A picture of DOT text in which every node and edge has its position.

    Args:
        source: DOT text.
        form: one of `FORMATS`.

    Returns:
        The file's bytes.

    Raises:
        GraphError: Graphviz is not installed, or cannot draw the text.
    """
    try:
        return graphviz.pipe("neato", form, source.encode(), neato_no_op=2, quiet=True)
    except graphviz.ExecutableNotFound as error:
        raise GraphError(INSTALL) from error
    except graphviz.CalledProcessError as error:
        reason = " ".join((error.stderr or b"").decode(errors="replace").split())
        raise GraphError(f"Graphviz cannot draw the graph: {reason:.200}") from error


def write_picture(path: Path, source: Callable[[bool], str]) -> None:
    """Write a picture in the format that the suffix of `path` names.

    Args:
        path: where.
        source: its DOT text, given whether it is for a bitmap.

    Raises:
        GraphError: an unknown suffix, Graphviz is missing (not for .dot), or the place cannot be
            written.
    """
    form = path.suffix.removeprefix(".")
    if form not in ("dot", *FORMATS):
        raise GraphError(f"cannot draw {path}: expected a suffix of .svg, .png, .pdf, .dot")
    text = source(form == "png")
    picture = text.encode() if form == "dot" else render(text, form)
    with writing(path) as partial:
        partial.write_bytes(picture)
