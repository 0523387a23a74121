"""Which graphs of a dataset are worth a look, before anyone spends time on them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from graphs import GraphError
from graphs.collections.columns import TRACED
from graphs.collections.dataset import GraphDataset
from graphs.collections.stability import stability, stable_share
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.datasets.plan import weights_digest
from tracer.errors import TraceError
from tracer.validation.spot_check import CHECKS, spot_check

PARTS = ("completeness", "covered", "stability", "agreement")
"""What usefulness is the mean of, each from 0 to 1."""
COLUMNS = {
    "prompt": pa.int64(),
    "text": pa.string(),
    "answer": pa.string(),
    "probability": pa.float64(),
    "usefulness": pa.float64(),
    **dict.fromkeys(PARTS, pa.float64()),
}


@one_call()
@torch.no_grad()
def triage(
    dataset: GraphDataset | str | Path,
    model: ReplacementModel | None = None,
    checks: int = CHECKS,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """A predicted usefulness of every graph of a dataset, the most useful first.

    An order to look in, not a verdict: `python -m benchmarks.triage` measures how little it
    predicts of full validations of the embedded default's graphs.

    Args:
        dataset: of graphs, or its folder.
        model: that it was traced with, to zero some features of each graph in one forward pass;
            None: the dataset alone.
        checks: features zeroed a graph, 3 or more.
        progress: called with graphs done and graphs in all.

    Returns:
        prompt, text, answer, probability, usefulness, then the parts it is the mean of, from 0 to 1
        and null where not known: completeness (of the graph as traced), covered (1 - uncovered),
        stability (of its features, each weighed by influence, over thresholds below those it was
        pruned at) and agreement (Spearman of influence with the effect of zeroing, 0 where it is
        negative; `tracer.validation.spot_check`).

    Raises:
        GraphError: no dataset, no graph in it, or a torn file.
        TraceError: it was traced with other weights, or `checks` is too small.
    """
    held = dataset if isinstance(dataset, GraphDataset) else GraphDataset.load(dataset)
    if checks < 3:
        raise TraceError(f"checks is {checks}, expected 3 or more features")
    if model is not None and held.about.get("weights_digest") != weights_digest(model):
        raise TraceError(f"{held.path} was traced with other weights than the model's: load the "
                         "model and the dictionary that its settings.json names")  # fmt: skip
    tell = progress or (lambda done, total: None)
    rows = list(_rows(held, model, checks, tell))
    if not rows:
        raise GraphError(f"{held.path} holds no graph yet: none of its prompts was traced")
    rows.sort(key=lambda row: (-row["usefulness"], row["prompt"]))
    return pa.Table.from_pylist(rows, pa.schema(list(COLUMNS.items())))


def _rows(
    held: GraphDataset,
    model: ReplacementModel | None,
    checks: int,
    tell: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    columns = ["prompt", "text", "answer", "probability", "traced_completeness", "uncovered",
               "status"]  # fmt: skip
    about = {row["prompt"]: row for row in held.prompts.to_table(columns=columns).to_pylist()}
    total = sum(row["status"] == TRACED for row in about.values())
    for done, (number, graph) in enumerate(held.graphs(), 1):
        row = about[number]
        uncovered = row["uncovered"]
        parts = {
            "completeness": row["traced_completeness"],
            "covered": None if uncovered is None else 1 - uncovered,
            "stability": stable_share(stability(graph)),
            "agreement": None,
        }
        if model is not None:
            found = spot_check(model, graph, checks)
            parts["agreement"] = None if found is None else max(0.0, found)
        known = [value for value in parts.values() if value is not None]
        named = {name: row[name] for name in ("prompt", "text", "answer", "probability")}
        yield named | parts | {"usefulness": float(np.mean(known)) if known else 0.0}
        tell(done, total)
