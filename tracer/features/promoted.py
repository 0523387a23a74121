"""Names that need no one to look: the tokens a feature most promotes, and the token it fires on."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from graphs import AttributionGraph, NodeKind
from replacement_models import ReplacementModel
from replacement_models.folding import mlp_post_norm, written
from replacement_models.speed.few_rows import fast_maps
from tracer.attribution.local_model import LocalModel
from tracer.attribution.sizes import Sizes

PROMOTED = 3
BUDGET, LEAST = 1e9, 64
"""Floating-point operations spent on a graph's labels, and the features labelled whatever it costs:
one label costs as much as unembedding one vector."""
AT_ONCE = 256
"""Features scored together."""
SAMPLED = 256
"""Features, about, that a token's usual score is measured on."""


def labelled(
    graph: AttributionGraph,
    model: ReplacementModel,
    local: LocalModel,
    column: Int[np.ndarray, " nodes"],
) -> dict[str, str]:
    """Labels, by node id, of the most influential features: as many as the budget allows.

    Features beyond it keep the token they fire on as their label. `column` says where each node
    stands in the local model.
    """
    cost = 2 * model.host.d_model * model.host.vocabulary
    count = max(LEAST, int(BUDGET / cost))
    nodes = graph.nodes
    features = np.flatnonzero(nodes["kind"].to_numpy() == NodeKind.FEATURE.value)
    order = np.argsort(-nodes["influence"].to_numpy()[features], kind="stable")
    rows = features[order[:count]]
    chosen = torch.as_tensor(column[rows], dtype=torch.long, device=model.device)
    texts = graph.metadata["tokens"]
    ids = nodes["id"].take(rows).to_pylist()
    return dict(zip(ids, feature_labels(model, local, chosen, texts), strict=True))


def feature_labels(
    model: ReplacementModel, local: LocalModel, columns: Int[Tensor, " chosen"], texts: list[str]
) -> list[str]:
    """`Texas, TX, Lone · Dallas` for features in `columns`.

    A name beside the dictionary (replacement_models/formats/labels.py) takes precedence. A feature
    promotes the tokens whose logits its decoder, summed over the layers it writes to, raises most
    through the final norm's weight (the frozen denominators only scale them), in deviations from
    what features do to that token (`UsualScores`). A feature with a negative activation is read
    with its sign.

    Args:
        model: whose vocabulary.
        local: whose features.
        columns: features to name.
        texts: token string of every position.
    """
    chosen = local.features[columns]
    pairs = torch.stack([chosen.layer, chosen.feature])
    used, where = pairs.unique(dim=1, return_inverse=True)
    promoted = promoted_tokens(model, used)
    named = [model.labels.get((layer, feature)) for layer, feature in used.T.tolist()]
    signs, positions = chosen.activation.sign().tolist(), chosen.position.tolist()
    labels = []
    for slot, position, sign in zip(where.tolist(), positions, signs, strict=True):
        names = promoted[slot] if sign > 0 else [f"−{name}" for name in promoted[slot]]
        labels.append(f"{named[slot] or ', '.join(names)} · {texts[position].strip()}")
    return labels


def promoted_tokens(
    model: ReplacementModel, features: Int[Tensor, "2 features"], count: int = PROMOTED
) -> list[list[str]]:
    """The tokens that one unit of each feature promotes most, beside what other features do.

    Args:
        model: whose vocabulary.
        features: layers, ascending, and numbers within the layer.
        count: tokens a feature.
    """
    layers = features[0].unique().tolist()
    total = [written_by(model, layer, features[1][features[0] == layer]) for layer in layers]
    found: list[list[str]] = []
    for part in torch.cat(total).split(AT_ONCE) if total else ():
        scores = usual_scores(model).above(_scores(model, part))
        for tokens in scores.topk(min(count, scores.shape[1])).indices.tolist():
            found.append([model.token_string(token).strip() for token in tokens])
    return found


def _scores(
    model: ReplacementModel, written: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows vocabulary"]:
    """What vectors do to the logits, less what they do to the mean logit."""
    norm = model.host.final_norm
    read = norm.centre(written) * norm.weight
    with fast_maps(len(read), read.device):
        return linear(read, model.host.unembedding) - (read @ model.mean_unembedding)[:, None]


@dataclass(frozen=True, eq=False)
class UsualScores:
    """What features of one dictionary do to each token, measured on some of them.

    On a real model the same few tokens come first for any vector: their rows are long and stand
    apart (unembedded.py, which measures all features). What stands out is named instead.
    """

    mean: Float[Tensor, " vocabulary"]
    deviation: Float[Tensor, " vocabulary"]

    def above(self, scores: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """Scores in standard deviations from the token's mean."""
        return (scores - self.mean) / self.deviation


_KNOWN: WeakKeyDictionary[ReplacementModel, UsualScores] = WeakKeyDictionary()
"""By model: its weights do not change."""


def usual_scores(model: ReplacementModel) -> UsualScores:
    """Mean and deviation of every token's score over features spread evenly over a dictionary."""
    if model not in _KNOWN:
        count = total = square = torch.zeros((), dtype=model.dtype, device=model.device)
        layers = model.transcoder.present
        for layer in layers:
            features = len(model.transcoder.layers[layer].W_enc)
            step = max(1, features * len(layers) // SAMPLED)
            wanted = torch.arange(0, features, step, device=model.device)
            scores = _scores(model, written_by(model, layer, wanted))
            count = count + len(wanted)
            total, square = total + scores.sum(0), square + (scores * scores).sum(0)
        mean = total / count
        variance = (square / count - mean * mean).clamp(min=0)
        least = torch.finfo(model.dtype).eps * variance.max().clamp(min=1e-30)
        _KNOWN[model] = UsualScores(mean, variance.clamp(min=float(least)).sqrt())
    return _KNOWN[model]


def written_by(
    model: ReplacementModel, layer: int, features: Int[Tensor, " rows"]
) -> Float[Tensor, "rows d_model"]:
    """What one unit of features of one layer writes, summed over the layers it writes to."""
    rows = model.transcoder.decoder_rows(layer, features)
    total = torch.zeros_like(rows[:, 0])
    for slot, target in enumerate(model.transcoder.targets(layer)):
        post = mlp_post_norm(model.host.blocks[target], model.transcoder.write_at(target))
        total += written(rows[:, slot], post)
    return total.to(model.device)


def label_bytes(sizes: Sizes) -> float:
    """Bytes for naming the strongest features of a graph."""
    count = max(LEAST, int(BUDGET / (2 * sizes.d_model * sizes.vocabulary)))
    rows = min(count, sizes.explained) * max(map(len, sizes.targets)) * sizes.d_model
    scores = min(count, AT_ONCE) * sizes.vocabulary
    return (2.0 * rows + scores) * sizes.itemsize
