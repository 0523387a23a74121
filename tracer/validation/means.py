"""What features and errors are on average over a corpus: what ablation puts in their place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.replaced import Writes
from tracer.errors import TraceError
from tracer.interventions.forward import Run, run

ENTRIES = 1 << 23
"""Logits, or activations of one layer, that a forward pass makes at most."""


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
    """Average features and errors over prompts; those of one length share a forward pass.

    Args:
        model: the model.
        prompts: the corpus.
        skip_positions: leave out the first so many positions of each, as graphs do.

    Returns:
        Mean activations (features) and errors (D), a layer each, and what the former write (D).

    Raises:
        TraceError: no position is left to average.
        ModelError: a prompt does not fit the model, or the model computes something else than its
            host says.
    """
    listed = [model.tokenize(prompt) for prompt in prompts]
    count = sum(max(0, len(tokens) - skip_positions) for tokens in listed)
    if count == 0:
        raise TraceError("corpus has no position to average over; give longer prompts, or more")
    model.record(listed[0], last_logits=True)  # checks what the passes below take for granted
    sums = _Sums(model, skip_positions)
    for batch in batches(model, listed):
        sums.writes = Writes(model.transcoder)
        run(model, batch, Run(edit=sums, keep=False))
    means = [total / count for total in sums.active]
    errors = [total / count for total in sums.errors]
    return Means(means, errors, _written(model, means), count)


def batches(
    model: ReplacementModel, prompts: Sequence[Sequence[int]], rows: int = 1
) -> Iterator[Int[Tensor, "prompts positions"]]:
    """Prompts of one length after the other, as many as a forward pass should hold.

    Args:
        model: the model.
        prompts: token ids; those of one length keep their order.
        rows: of the pass for each prompt.

    Yields:
        Token ids on the model's device.
    """
    width = max(model.host.vocabulary, *(len(one.b_enc) for one in model.transcoder.layers))
    by_length: dict[int, list[Sequence[int]]] = {}
    for tokens in prompts:
        by_length.setdefault(len(tokens), []).append(tokens)
    for length, same in sorted(by_length.items()):
        step = max(1, ENTRIES // (length * width * rows))
        for start in range(0, len(same), step):
            yield torch.tensor(same[start : start + step], device=model.device)


@dataclass
class _Sums:
    """The edit that changes nothing and adds up what it sees, over many forward passes."""

    model: ReplacementModel
    skipped: int
    active: list[Tensor] = field(init=False)
    errors: list[Tensor] = field(init=False)
    writes: Writes = field(init=False)
    """Of the pass that runs."""

    def __post_init__(self) -> None:
        layers = self.model.transcoder.layers
        self.active = [torch.zeros_like(one.b_enc) for one in layers]
        self.errors = [torch.zeros_like(one.b_dec) for one in layers]

    def reads(self, layer: int) -> bool:
        """Every layer."""
        return True

    def changes(self, layer: int, active: Float[Tensor, "rows positions features"]) -> None:
        """Notes activations and what they write."""
        self.active[layer] += active[:, self.skipped :].sum((0, 1))
        used = active.flatten(0, 1).any(0).nonzero()[:, 0]
        self.writes.add(layer, used, active[..., used])

    def output(self, layer: int, x: Tensor, output: Tensor) -> Tensor:
        """Notes the error; the output stays as it is."""
        gap = output - self.writes.output(layer, x)
        self.errors[layer] += gap[:, self.skipped :].sum((0, 1))
        return output


def _written(model: ReplacementModel, means: Sequence[Tensor]) -> list[Tensor]:
    writes = Writes(model.transcoder)
    for layer, mean in enumerate(means):
        used = mean.nonzero()[:, 0]
        writes.add(layer, used, mean[used])
    nothing = torch.zeros_like(model.transcoder.layers[0].b_dec)
    return [writes.pending.get(layer, nothing) for layer in range(len(means))]
