"""One prompt of many: its graph, pruned, as rows; or the reason why it has none."""

import json
from collections.abc import Mapping
from time import perf_counter, process_time
from typing import NamedTuple

from graphs import AttributionGraph
from graphs.collections.rows import Asked, Rows, failed_rows, traced_rows
from replacement_models import ReplacementModel
from tracer.attribution.trace import trace
from tracer.datasets.plan import How
from tracer.datasets.prompts import Prompt, one_line, target_names
from tracer.errors import TraceError


class Done(NamedTuple):
    """A prompt that was traced, or failed."""

    number: int
    rows: Rows
    seconds: float
    cpu_seconds: float
    products: Mapping[str, str]
    """Which way its large products went."""


def done(
    model: ReplacementModel, how: How, number: int, prompt: Prompt, products: Mapping[str, str]
) -> Done:
    """Trace one prompt.

    Args:
        model: what to trace.
        how: as all prompts of the dataset are traced.
        number: of the prompt.
        prompt: what to trace.
        products: which way classes of large products go that earlier prompts had.

    Returns:
        Its rows. Whatever goes wrong with a prompt alone is a row with the reason.
    """
    begin, cpu = perf_counter(), process_time()
    used = dict[str, str]()
    asked = Asked(number, prompt.text, _targets(prompt), prompt.own)
    try:
        whole, kept = _graphs(model, how, prompt, products)
        used = kept.metadata["versions"]["products"]
        rows = traced_rows(_named(asked, kept), whole, kept)
    except Exception as error:  # one prompt of thousands shall not end the others
        rows = failed_rows(asked, _reason(error), how.weight)
    return Done(number, rows, perf_counter() - begin, process_time() - cpu, used)


def _graphs(
    model: ReplacementModel, how: How, prompt: Prompt, products: Mapping[str, str]
) -> tuple[AttributionGraph, AttributionGraph]:
    """The graph as traced, without labels of a store, and what is kept of it, with them."""
    if prompt.wrong is not None:
        raise TraceError(prompt.wrong)
    assert prompt.given is not None
    whole: list[AttributionGraph] = []

    def prune(graph: AttributionGraph) -> AttributionGraph:
        whole.append(graph)
        return graph.prune(how.nodes, how.edges)

    settings = dict(how.settings)
    settings["products"] = {**products, **(settings["products"] or {})} or None
    if prompt.targets is not None:
        settings["targets"] = prompt.targets
    kept = trace(model, prompt.given, on_graph=prune, **settings)
    return whole[0], kept


def _named(asked: Asked, graph: AttributionGraph) -> Asked:
    """With the text of its token ids, where it was given as ids."""
    text = asked.text if asked.text is not None else graph.metadata["prompt"]
    return Asked(asked.number, text, asked.targets, asked.own)


def _targets(prompt: Prompt) -> str | None:
    names = target_names(prompt.targets)
    return None if names is None else one_line(json.dumps(names, ensure_ascii=False))


def _reason(error: Exception) -> str:
    ours = isinstance(error, ValueError) and str(error)
    return one_line(error if ours else f"{type(error).__name__}: {error}")
