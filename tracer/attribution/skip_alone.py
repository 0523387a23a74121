"""What a transcoder with a linear skip would score without any of its features.

A good linear map explains much of a model by itself, so that a graph's scores say little of the
dictionary's features unless those of the map alone stand beside them.
"""

from dataclasses import asdict, replace
from math import isnan

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse

from graphs.influence import influence, input_absolute, shares
from graphs.scores import ScorePair, score_pair
from replacement_models import Recording, ReplacementModel
from replacement_models.hooks import eager_attention
from tracer.attribution.blocks import Plan, finished_blocks
from tracer.attribution.local_model import linearise
from tracer.attribution.targets import LogitTargets


def skip_alone(
    model: ReplacementModel, recording: Recording, logits: LogitTargets, skip_positions: int
) -> dict[str, dict[str, float | None]]:
    """Scores of the same prompt and targets if no feature had fired.

    The local replacement model in which every MLP output y^m at a position that is not skipped is
    `W_skip^m x^m + b_dec^m + e^m`, with a constant error e^m = y^m - W_skip^m x^m - b_dec^m that
    holds all that features write there. Its graph has tokens, errors and targets for nodes, and the
    skip in its Jacobian, as the traced graph has. No edge floor applies.

    Args:
        model: what was recorded.
        recording: its forward pass.
        logits: what is explained.
        skip_positions: errors at the first so many positions are no nodes.

    Returns:
        For the metadata: `skip_alone`, with `replacement` and `completeness` as `graphs.scores`
        defines them, shares from 0 to 1, None where the targets weigh nothing. Nothing where no
        layer has a skip.
    """
    layers = range(len(model.host.blocks))
    if all(model.transcoder.skip(layer) is None for layer in layers):
        return {}
    none = torch.zeros(0, dtype=torch.long, device=model.device)
    bare = replace(recording, features=recording.features[none])
    local = linearise(model, bare, skip_positions, rows=0)
    plan = Plan(0, 1, edge_floor=0.0, progress=None, keep_partial=False)
    with eager_attention(model.host.model):  # for patterns made anew, from several threads
        done = next(finished_blocks(model, bare, local, logits, plan)).effects
    every = np.arange(local.columns, dtype=np.int32)
    rows = sparse.vstack([run.among(every, len(every)).effects for run in done], format="csr")
    found = _scores(rows, np.array(logits.weight), tokens=local.positions)
    named = {name: None if isnan(value) else value for name, value in asdict(found).items()}
    return {"skip_alone": named}


def _scores(
    rows: sparse.csr_array, weight: Float[np.ndarray, " targets"], tokens: int
) -> ScorePair:
    """Scores of target rows over errors, then `tokens` tokens, and nothing between."""
    targets, sources = rows.shape
    start = np.concatenate([np.zeros(sources, dtype=rows.indptr.dtype), rows.indptr])
    shape = (sources + targets, sources + targets)
    effect = sparse.csr_array((rows.data, rows.indices, start), shape=shape)
    weight = np.concatenate([np.zeros(sources), weight])
    total = input_absolute(effect)
    at = np.arange(len(weight))
    error = at < sources - tokens
    roots = (~error & (at < sources), error)
    return score_pair(effect, total, influence(shares(effect, total), weight), weight, roots)
