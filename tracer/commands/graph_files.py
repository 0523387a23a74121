"""Where commands read graphs from and write them to."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import tracer
from tracer.commands.group import Failure

if TYPE_CHECKING:
    from tracer import AttributionGraph


def graph_at(folder: Path, number: int | None) -> "AttributionGraph":
    """Load a graph, or one of a dataset of graphs."""
    if number is None:
        return tracer.AttributionGraph.load(folder)
    return tracer.GraphDataset.load(folder).graph(number)


def pruned(
    folder: Path,
    shares: tuple[float, float],
    keep_attention: bool | None = None,
    number: int | None = None,
) -> "tuple[AttributionGraph, str]":
    """Load and prune a graph; return it and what was dropped, in words."""
    graph = graph_at(folder, number)
    small = graph.prune(*shares, keep_attention)
    return small, dropped(graph, small, shares)


def pins_left(folder: Path, small: "AttributionGraph") -> list[str]:
    """The pins saved beside a graph whose nodes are still there."""
    from graphs.exchange.arrow import VIEW, read
    from graphs.exchange.views import pins_of

    left = set(small.nodes["id"].to_pylist())
    return [one for one in pins_of(read(folder).beside.get(VIEW)) if one in left]


def dropped(
    graph: "AttributionGraph", small: "AttributionGraph", shares: tuple[float, float]
) -> str:
    """What pruning dropped of a graph, in words."""
    from graphs import words

    rows, links = graph.nodes.num_rows, graph.effect.nnz
    steering = words.steering(small.metadata.get("pruned", {}))
    return (
        f"Kept {small.nodes.num_rows} of {rows} nodes and {small.effect.nnz} of {links} edges "
        f"(--nodes {shares[0]:g} --edges {shares[1]:g}; 1 and 1 keep all{steering})"
    )


def refuse_unwritable_graph(path: Path) -> None:
    """Refuse, before long work, a place where a graph cannot or should not be written.

    Raises:
        Failure: a file of another kind is asked for, or nothing can be written there.
        GraphError: something that is no graph stands there.
    """
    from graphs.exchange.arrow import check_replaceable

    if command := written_by(path.suffix):
        what = f"a graph is a folder or .zip; tracer {command} makes {path.suffix} files of it"
        raise Failure(f"cannot write {path}: {what}")
    check_replaceable(path)
    parent = path if path.is_dir() else path.absolute().parent
    if not parent.is_dir():
        raise Failure(f"cannot write {path}: there is no folder {parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise Failure(f"cannot write {path}: {parent}: {error.strerror}") from error


def written_by(suffix: str) -> str | None:
    """The command that writes files of this suffix from a graph, if one does."""
    from graphs.exchange.tables import WRITERS
    from graphs.pictures.render import FORMATS

    if suffix in {".dot", *(f".{form}" for form in FORMATS)}:
        return "render"
    return "export" if suffix in WRITERS else None
