"""A validation in one forward pass: some features of a graph zeroed, the fall beside influence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from graphs import AttributionGraph
from graphs.schema import NodeKind
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.interventions.forward import FeatureEdits, Run, run
from tracer.interventions.intervene import place
from tracer.interventions.values import Intervention
from tracer.validation.correlation import spearman

CHECKS = 24
"""Features zeroed."""
FEWEST = 3
"""Features that a correlation needs."""


@one_call()
@torch.no_grad()
def spot_check(
    model: ReplacementModel, graph: AttributionGraph, count: int = CHECKS
) -> float | None:
    """Rank correlation of influence with the effect of zeroing a feature, over a few features.

    What `tracer.validate` measures over all features of the whole graph, over those of them that
    stand at even steps of influence in this one, pruned or not, in one forward pass.

    Args:
        model: the model the graph was traced from.
        graph: any.
        count: of features, with the strongest and the weakest among them.

    Returns:
        Spearman's correlation over the features with the size of the fall of the likeliest target's
        demeaned logit; None where the target is no token, or there are too few features.
    """
    rows = graph.nodes.to_pylist()
    targets = [row for row in rows if row["kind"] == NodeKind.LOGIT]
    target = max(targets, key=lambda row: row["probability"], default=None)
    features = [row for row in rows if row["kind"] == NodeKind.FEATURE]
    features.sort(key=lambda row: (-row["influence"], row["id"]))
    if target is None or target["token"] is None or not features:
        return None
    steps = np.linspace(0, len(features) - 1, min(count, len(features)))
    some = [features[at] for at in np.unique(steps.round().astype(int)).tolist()]
    ids = graph.metadata["token_ids"][: graph.metadata["position"] + 1]
    fall = _falls(model, ids, some, target["token"])
    influence, size = np.array([row["influence"] for row in some]), np.abs(fall)
    return spearman(influence, size, FEWEST)


def _falls(
    model: ReplacementModel, ids: Sequence[int], features: Sequence[dict[str, Any]], token: int
) -> np.ndarray:
    """By how much the target's demeaned logit falls when each feature alone is zeroed."""
    changes = [
        Intervention(
            layer=row["layer"], position=row["position"], feature=row["feature"], value=0.0
        )
        for row in features
    ]
    placed = [place(model, some, len(ids))[0] for some in [[], *([one] for one in changes)]]
    tokens = torch.tensor([list(ids)] * len(placed), device=model.device)
    out = run(model, tokens, Run(edit=FeatureEdits(placed), keep=False)).logits[:, -1].double()
    said = (out[:, token] - out.mean(-1)).cpu().numpy()
    fall: np.ndarray = said[0] - said[1:]
    return fall
