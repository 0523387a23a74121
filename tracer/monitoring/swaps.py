"""Single token swaps that a gradient promises much of.

To first order, putting token v at a position changes what is read by (e_v - e_now) · g, g the
gradient there of what the embedding gave (Zou et al. 2023, "Universal and Transferable Adversarial
Attacks on Aligned Language Models", greedy coordinate gradient; HotFlip, Ebrahimi et al. 2018). It
only proposes: every swap is run before it counts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.replaced import special_tokens
from tracer.features.rows import padded
from tracer.monitoring.readings import Read, read
from tracer.monitoring.watches import Watch

Ids = tuple[int, ...]


def ordinary(model: ReplacementModel) -> Bool[Tensor, " vocabulary"]:
    """Tokens that a text may hold: no special ones, none that decode to nothing."""
    rows = model.host.vocabulary
    allowed = torch.ones(rows, dtype=torch.bool)
    allowed[[token for token in special_tokens(model) if token < rows]] = False
    if model.tokenizer is not None:
        known = min(rows, len(model.tokenizer))
        allowed[known:] = False
        added = getattr(model.tokenizer, "added_tokens_decoder", {})
        allowed[[at for at, one in added.items() if one.special and at < rows]] = False
        texts = model.tokenizer.batch_decode([[token] for token in range(known)])
        empty = [
            at for at, text in enumerate(texts) if not text or "\N{REPLACEMENT CHARACTER}" in text
        ]
        allowed[empty] = False
    return allowed


def highest(found: Read) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Of one watch and each row, the largest value and the largest reach over tokens that count."""
    low = torch.finfo(found.values.dtype).min
    values = found.values[0].masked_fill(~found.counts, low).amax(1)
    reach = found.reach[0].masked_fill(~found.counts, low).amax(1)
    return values, reach


def slopes(
    model: ReplacementModel, rows: Sequence[Ids], watch: Watch, skip_positions: int
) -> Float[Tensor, "rows positions vocabulary"]:
    """By how much each token at each place would raise the reach, to first order."""
    found = read(model, padded(rows), [watch], skip_positions, gradients=True)
    _, reach = highest(found)
    assert found.embedded is not None
    [slope] = torch.autograd.grad(reach.sum(), found.embedded)
    if slope.ndim == 2:  # some models embed rows and positions as one
        slope = slope.view(len(rows), len(rows[0]), -1)
    with torch.no_grad():
        table: Tensor = model.host.embedding.weight  # type: ignore[assignment]
        ids = torch.tensor(rows, device=table.device)
        gains: Tensor = slope.to(table.dtype) @ table.T
        return gains - gains.gather(2, ids[..., None])


def shortlist(
    gains: Float[Tensor, "positions vocabulary"],
    allowed: Bool[Tensor, " vocabulary"],
    free: Sequence[int],
    each: int,
) -> Int[Tensor, "free each"]:
    """The most promising tokens of every place that may change."""
    rows = gains[list(free)].masked_fill(~allowed.to(gains.device), float("-inf"))
    return rows.topk(min(each, int(allowed.sum())), dim=1).indices.cpu()
