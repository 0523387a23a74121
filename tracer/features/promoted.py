"""Names that need no one to look: the tokens a feature most promotes, and the token it fires on."""

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

    A name beside the dictionary (replacement_models/labels.py) takes precedence. A feature
    promotes the tokens whose logits its decoder, summed over the layers it writes to,
    raises most through the final norm's weight (the frozen denominators only scale them). A feature
    with a negative activation is read with its sign.

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
    """The tokens that one unit of each feature promotes most, likeliest first.

    Args:
        model: whose vocabulary.
        features: layers, ascending, and numbers within the layer.
        count: tokens a feature.
    """
    norm = model.host.final_norm
    layers = features[0].unique().tolist()
    total = [written_by(model, layer, features[1][features[0] == layer]) for layer in layers]
    found: list[list[str]] = []
    for part in torch.cat(total).split(AT_ONCE) if total else ():
        with fast_maps(len(part)):
            scores = linear(norm.centre(part) * norm.weight, model.host.unembedding)
        for tokens in scores.topk(min(count, scores.shape[1])).indices.tolist():
            found.append([model.token_string(token).strip() for token in tokens])
    return found


def written_by(
    model: ReplacementModel, layer: int, features: Int[Tensor, " rows"]
) -> Float[Tensor, "rows d_model"]:
    """What one unit of features of one layer writes, summed over the layers it writes to."""
    rows = model.transcoder.decoder_rows(layer, features)
    total = torch.zeros_like(rows[:, 0])
    for slot, target in enumerate(model.transcoder.targets(layer)):
        post = mlp_post_norm(model.host.blocks[target], model.transcoder.write_at(target))
        total += written(rows[:, slot], post)
    return total


def label_bytes(sizes: Sizes) -> float:
    """Bytes for naming the strongest features of a graph."""
    count = max(LEAST, int(BUDGET / (2 * sizes.d_model * sizes.vocabulary)))
    rows = min(count, sizes.explained) * max(map(len, sizes.targets)) * sizes.d_model
    scores = min(count, AT_ONCE) * sizes.vocabulary
    return (2.0 * rows + scores) * sizes.itemsize
