"""Names that need no one to look: the tokens a feature most promotes, and the token it fires on."""

import torch
from jaxtyping import Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.folding import mlp_post_norm, written
from tracer.linear import LocalModel

PROMOTED = 3


def feature_labels(
    model: ReplacementModel, local: LocalModel, columns: Int[Tensor, " chosen"], texts: list[str]
) -> list[str]:
    """`Texas, TX, Lone · Dallas` for features in `columns`.

    A feature promotes the tokens whose logits its decoder, summed over the layers it writes to,
    raises most through the final norm's weight (the frozen denominators only scale them). A feature
    with a negative activation is read with its sign.

    Args:
        model: whose vocabulary.
        local: whose features.
        columns: features to name.
        texts: token string of every position.
    """
    chosen = local.features[columns]
    labels = [""] * len(columns)
    for layer in chosen.layer.unique().tolist():
        here = (chosen.layer == layer).nonzero()[:, 0]
        used, where = chosen.feature[here].unique(return_inverse=True)
        promoted = promoted_tokens(model, layer, used)
        signs = chosen.activation[here].sign().tolist()
        for row, slot, sign in zip(here.tolist(), where.tolist(), signs, strict=True):
            text = texts[int(chosen.position[row])].strip()
            names = promoted[slot] if sign > 0 else [f"−{name}" for name in promoted[slot]]
            labels[row] = f"{', '.join(names)} · {text}"
    return labels


def promoted_tokens(
    model: ReplacementModel, layer: int, features: Int[Tensor, " rows"], count: int = PROMOTED
) -> list[list[str]]:
    """The tokens that one unit of each feature promotes most, likeliest first."""
    rows = model.transcoder.decoder_rows(layer, features)
    targets = model.transcoder.targets(layer)
    total = torch.zeros_like(rows[:, 0])
    for slot, target in enumerate(targets):
        post = mlp_post_norm(model.host.blocks[target], model.transcoder)
        total += written(rows[:, slot], post)
    norm = model.host.final_norm
    direction = norm.centre(total) * norm.weight
    found: list[list[str]] = []
    for part in direction.split(256):
        scores = part @ (model.host.unembedding - model.mean_unembedding).T
        for tokens in scores.topk(min(count, scores.shape[1])).indices.tolist():
            found.append([model.token_string(token).strip() for token in tokens])
    return found
