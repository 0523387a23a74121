"""One pass over a batch of rows, with the stream entering every layer kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.hooks import first_tensor, float64_experts, forward_hooks, on_last
from tracer.interventions.forward import input_hooks


@dataclass(frozen=True, eq=False)
class Streams:
    """A batch of equally long rows."""

    entering: Sequence[Float[Tensor, "rows positions d_model"]]
    """Each layer, and last the final norm: L + 1."""
    logits: Float[Tensor, "rows positions vocabulary"]
    """As the model shows them."""


def streams(model: ReplacementModel, tokens: Int[Tensor, "rows positions"]) -> Streams:
    """Run the model on rows of one length; gradients flow where torch records them."""
    host, seen, end = model.host, [], []

    def enter(stream: Tensor) -> Tensor:
        seen.append(stream.view_as(stream))  # its gradient is of what reads it from here on
        return seen[-1]

    entering = [(block.module, enter) for block in host.blocks]
    last = on_last(host.final_norm_calls, lambda inputs, _: end.append(first_tensor(inputs)))
    with (
        input_hooks(entering),
        forward_hooks([(host.final_norm.module, last)]),
        float64_experts(host.model),
    ):
        logits: Tensor = host.model(input_ids=tokens, use_cache=False).logits
    return Streams([*seen, *end], logits.to(host.device))


def batches(
    rows: Int[Tensor, "rows positions"], size: int, generator: torch.Generator
) -> list[Int[Tensor, "batch positions"]]:
    """All rows once, in an order drawn from the generator."""
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    return list(rows[order].split(size))
