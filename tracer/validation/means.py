"""What features and errors are on average over a corpus: what ablation puts in their place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.replaced import Writes
from tracer.errors import TraceError


@dataclass(frozen=True, eq=False)
class Means:
    """Averages over all counted positions of a corpus."""

    activations: Sequence[Float[Tensor, " features"]]
    """A layer each."""
    errors: Sequence[Float[Tensor, " d_model"]]
    """MLP output less what the transcoders make of it, a layer each."""
    written: Sequence[Float[Tensor, " d_model"]]
    """What the mean activations write to each layer's MLP output."""
    positions: int
    """How many positions they are averages of."""

    __repr__ = one_line


@one_call()
@torch.no_grad()
def corpus_means(
    model: ReplacementModel, prompts: Sequence[str | Sequence[int]], skip_positions: int = 1
) -> Means:
    """Average features and errors over prompts.

    Args:
        model: the model.
        prompts: the corpus.
        skip_positions: leave out the first so many positions of each, as graphs do.

    Returns:
        Mean activations (features) and errors (D), a layer each, and what the former write (D).

    Raises:
        TraceError: no position is left to average.
        ModelError: a prompt does not fit the model.
    """
    layers, count = range(len(model.host.blocks)), 0
    active = [torch.zeros_like(weights.b_enc) for weights in model.transcoder.layers]
    errors = [torch.zeros_like(weights.b_dec) for weights in model.transcoder.layers]
    for prompt in prompts:
        recording = model.record(prompt)
        encoded = [model.transcoder.encode(layer, recording.inputs[layer])[1] for layer in layers]
        decoded = model.transcoder.decode(encoded, recording.inputs)
        for layer in layers:
            active[layer] += encoded[layer][skip_positions:].sum(0)
            gap = recording.outputs[layer] - decoded[layer]
            errors[layer] += gap[skip_positions:].sum(0)
        count += max(0, len(recording.tokens) - skip_positions)
    if count == 0:
        raise TraceError("corpus has no position to average over; give longer prompts, or more")
    means = [total / count for total in active]
    return Means(means, [total / count for total in errors], _written(model, means), count)


def _written(model: ReplacementModel, means: Sequence[Tensor]) -> list[Tensor]:
    writes = Writes(model.transcoder)
    for layer, mean in enumerate(means):
        used = mean.nonzero()[:, 0]
        writes.add(layer, used, mean[used])
    nothing = torch.zeros_like(model.transcoder.layers[0].b_dec)
    return [writes.pending.get(layer, nothing) for layer in range(len(means))]
