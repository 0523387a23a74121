"""What an agent may ask: eight tools over the graphs of one folder and one model.

Each takes plain values and gives lines of text, bounded; each error is one line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from graphs import AttributionGraph, validation_summary
from graphs.exchange.arrow import check_replaceable
from tracer.errors import TraceError
from tracer.serving.arguments import Argument, checked
from tracer.serving.confined import Root
from tracer.serving.graph_words import (
    SIGNS,
    bounded,
    graph_lines,
    head_lines,
    labelled_lines,
    node_lines,
    path_lines,
)
from tracer.serving.what_if import MODES, WhatIf

if TYPE_CHECKING:
    from replacement_models import ReplacementModel

LIMIT = 6000
"""Characters of an answer."""
FEATURE_ID = re.compile(r"(\d{1,9})_(\d{1,9})_(\d{1,9})", re.ASCII)
SEARCHED = ("label", "token", "promoted", "text", "similar")


@dataclass(frozen=True)
class Tool:
    """One thing to ask."""

    says: str
    arguments: tuple[Argument, ...]
    writes: bool = False


GRAPH = Argument("graph", "text", "name of a saved graph, as show lists them", required=True)


def _count(name: str, default: int, says: str) -> Argument:
    return Argument(name, "count", says, default)


TOOLS: dict[str, Tool] = {
    "trace": Tool(
        "Trace a prompt: explain the model's next token by its features, save the graph, and say "
        "what is in it.",
        (
            Argument("prompt", "text", "the text whose next token is explained", required=True),
            Argument("name", "text", "what the graph is saved as, e.g. hot.graph", required=True),
            Argument("target", "text", "explain this token instead of the likeliest (' cold')"),
            Argument("minus", "text", "explain target minus this token"),
            _count("features", 10, "features listed"),
            _count("paths", 5, "paths listed"),
        ),
        writes=True,
    ),
    "show": Tool(
        "Say what is in a saved graph; without graph, list the saved graphs.",
        (
            Argument("graph", "text", "name of a saved graph; none: list them"),
            _count("features", 10, "features listed"),
            _count("paths", 5, "paths listed"),
        ),
    ),
    "node": Tool(
        "One node of a graph: what it is, its strongest inputs and outputs.",
        (
            GRAPH,
            Argument("node", "text", "id of the node, as in 2_311_8", required=True),
            _count("top", 8, "inputs and outputs listed"),
        ),
    ),
    "paths": Tool(
        "The strongest paths of a graph from a token or an error to the answer.",
        (
            GRAPH,
            _count("count", 10, "paths listed"),
            Argument("sign", "choice", "only those of one sign", "all", tuple(SIGNS)),
        ),
    ),
    "heads": Tool(
        "Which attention heads carried the edges of a graph (runs the model unless known).",
        (GRAPH, _count("top", 10, "rows listed")),
    ),
    "search": Tool(
        "Find nodes of a graph by their words, or, without graph, features of the dictionary.",
        (
            Argument("query", "text", "what to look for", required=True),
            Argument("graph", "text", "name of a saved graph; none: the whole dictionary"),
            Argument("by", "choice", "what is searched in the dictionary", "label", SEARCHED),
            _count("top", 10, "results listed"),
        ),
    ),
    "intervene": Tool(
        "Run the model on a graph's prompt with features changed; says the answers before and "
        "after. free recomputes everything downstream, held holds attention, direct all else.",
        (
            GRAPH,
            Argument("changes", "changes", "features and their new value or scale", required=True),
            Argument("mode", "choice", "what is recomputed", "free", tuple(MODES)),
        ),
    ),
    "validate": Tool(
        "Test a graph by interventions on the model: how far to believe it. Takes a while; the "
        "result is saved with the graph.",
        (GRAPH,),
        writes=True,
    ),
}


@dataclass(frozen=True)
class Tools:
    """The tools, over one folder and one model."""

    root: Root
    load: "Callable[[], ReplacementModel]"
    limit: int = LIMIT
    """Characters of an answer."""

    def call(self, name: str, given: Mapping[str, Any]) -> str:
        """Answer one call.

        Args:
            name: one of `TOOLS`.
            given: arguments, as JSON gave them.

        Returns:
            Text of at most `limit` characters.

        Raises:
            TraceError: no such tool, or an argument that does not fit.
            GraphError: a graph cannot be read or written.
            ModelError: the prompt does not fit the model.
        """
        tool = TOOLS.get(name)
        if tool is None:
            raise TraceError(f"{name!r:.80} is no tool: expected {', '.join(TOOLS)}")
        with self._turn:
            return bounded(getattr(self, f"_{name}")(**checked(tool.arguments, given)), self.limit)

    @cached_property
    def _turn(self) -> Lock:
        return Lock()

    @cached_property
    def _asked(self) -> WhatIf:
        return WhatIf(self.load)

    def _graph(self, name: str) -> AttributionGraph:
        return AttributionGraph.load(self.root.place(name))

    def _trace(
        self, prompt: str, name: str, target: str | None, minus: str | None, features: int,
        paths: int,
    ) -> list[str]:  # fmt: skip
        from tracer.attribution.targets import Difference
        from tracer.attribution.trace import trace

        place = self.root.place(name)
        check_replaceable(place)
        if not place.parent.is_dir():
            raise TraceError(f"there is no folder for {name!r:.80}: name a graph without folders")
        if minus is not None and target is None:
            raise TraceError("minus needs a target")
        wanted = target if minus is None else Difference(str(target), minus)
        graph = trace(self._asked.model, prompt, targets=None if wanted is None else [wanted])
        graph.save(place)
        return [f"saved {name}", *graph_lines(graph, features, paths)]

    def _show(self, graph: str | None, features: int, paths: int) -> list[str]:
        if graph is None:
            names = self.root.graphs()
            return [f"{len(names)} graphs:", *(f"  {name}" for name in names)]
        return graph_lines(self._graph(graph), features, paths)

    def _node(self, graph: str, node: str, top: int) -> list[str]:
        return node_lines(self._graph(graph), node, top)

    def _paths(self, graph: str, count: int, sign: str) -> list[str]:
        return path_lines(self._graph(graph), count, sign)

    def _heads(self, graph: str, top: int) -> list[str]:
        from tracer.attention.heads import head_loadings

        found = self._graph(graph)
        if found.heads is None:
            self._asked.prompt(found)  # refuses a graph of another model
            found = head_loadings(self._asked.model, found)
        return head_lines(found, top)

    def _search(self, query: str, graph: str | None, by: str, top: int) -> list[str]:
        from tracer.features.beside import store_of

        if graph is not None:
            return labelled_lines(self._graph(graph), query, top)
        store, why = store_of(self._asked.model)
        if store is None:
            raise TraceError(why or "no feature store stands beside the dictionary: name a graph")
        hits = store.search(query, by, top)
        lines = [f"{len(hits)} features (layer/feature, score, label):"]
        return lines + [
            f"  {hit.layer}/{hit.feature}  {hit.score:.3f}  "
            f"{store.label_of(hit.layer, hit.feature).label or 'no label'}"
            for hit in hits
        ]

    def _intervene(self, graph: str, changes: list[dict[str, Any]], mode: str) -> list[str]:
        wanted = {"mode": mode, "changes": [_change(one) for one in changes]}
        found = self._asked.answer(self._graph(graph), wanted)
        lines = ["next token: before → after"]
        return lines + [
            f"  {one['text']!r}  {one['before']:.4f} → {one['after']:.4f}"
            for one in found["answers"]
        ]

    def _validate(self, graph: str) -> list[str]:
        from tracer.validation.validate import validate

        place = self.root.place(graph)
        found = AttributionGraph.load(place)
        self._asked.prompt(found)
        done = validate(self._asked.model, found)
        done.save(place)
        lines = [f"verdict: {validation_summary.sentences(done.graph.metadata)}"]
        for columns, rows in validation_summary.tables(done.summary):
            lines += ["  ".join(map(str, row)) for row in (columns, *rows)]
        return lines


def _change(one: Mapping[str, Any]) -> dict[str, Any]:
    """A change as the viewer asks for it."""
    place = FEATURE_ID.fullmatch(one["node"])
    if place is None:
        raise TraceError(f"{one['node'][:80]!r} is no feature's id, as in 2_311_8")
    layer, feature, position = map(int, place.groups())
    rest = {name: value for name, value in one.items() if name != "node"}
    return {"layer": layer, "position": position, "feature": feature, **rest}
