"""Scores of graphs over prompts, beside what would score without the dictionary's features.

Two dictionaries of different L0 have graphs of different sizes, so each prompt is traced twice:
with `max_features` nodes, and with `capped`, which are as many for every dictionary. A linear skip
scores by itself, and so does the best affine map: both stand beside, with no feature at all.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from replacement_models import ReplacementModel
from tracer.attribution.trace import trace
from tracer.evaluation.settings import Settings
from tracer.evaluation.subject import Subject

NAMES = ("replacement", "completeness", "uncovered")
Prompt = str | Sequence[int]


def graph_scores(
    subject: Subject, affine: ReplacementModel, prompt: Prompt, settings: Settings
) -> dict[str, Any]:
    """Scores of one prompt's graphs.

    Args:
        subject: a transcoder.
        affine: the model with affine maps alone.
        prompt: text or token ids.
        settings: caps and positions.

    Returns:
        By graph (`graph`, `capped`, `skip_alone`, `affine_alone`) its scores, shares from 0 to 1.
    """
    model, skip = subject.model, settings.skip_positions
    full = trace(model, prompt, max_features=settings.max_features, skip_positions=skip)
    capped = trace(model, prompt, max_features=settings.capped, skip_positions=skip)
    alone = trace(affine, prompt, max_features=0, skip_positions=skip)
    metadata = full.metadata
    return {
        "prompt": prompt if isinstance(prompt, str) else "".join(metadata["tokens"]),
        "tokens": len(metadata["tokens"]),
        "graph": _scores(full.scores),
        "capped": _scores(capped.scores),
        "skip_alone": metadata.get("skip_alone"),
        "affine_alone": alone.metadata["skip_alone"],
    }


def _scores(scores: Any) -> dict[str, float]:
    return {name: getattr(scores, name) for name in NAMES}


def together(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, median, least and most of every score over prompts."""
    found: dict[str, Any] = {"prompts": list(prompts)}
    for graph in ("graph", "capped", "skip_alone", "affine_alone"):
        rows = [one[graph] for one in prompts if one[graph] is not None]
        names = rows[0] if rows else ()
        found[graph] = {name: spread([row[name] for row in rows]) for name in names} or None
    return found


def spread(values: Sequence[float | None]) -> dict[str, float]:
    """Of the values that are numbers."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return dict.fromkeys(("mean", "median", "least", "most"), math.nan)
    return {
        "mean": fmean(known),
        "median": median(known),
        "least": min(known),
        "most": max(known),
    }
