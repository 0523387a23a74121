"""What patching is measured by: a number for every row of next-token logits."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from tracer.attribution.targets import token_id

Metric = Callable[[Float[Tensor, "rows vocabulary"]], Float[Tensor, " rows"]]
"""From the logits a model shows after each prompt to one number each; any callable will do."""


def logit_difference(model: ReplacementModel, a: str | int, b: str | int) -> Metric:
    """The logit of token `a` less that of token `b`.

    Raises:
        TraceError: one of them is not exactly one token.
    """
    first, second = token_id(model, a), token_id(model, b)
    return lambda logits: logits[:, first] - logits[:, second]


def probability(model: ReplacementModel, token: str | int) -> Metric:
    """The probability of one token.

    Raises:
        TraceError: it is not exactly one token.
    """
    chosen = token_id(model, token)
    return lambda logits: logits.softmax(-1)[:, chosen]


def divergence(reference: Float[Tensor, " vocabulary"]) -> Metric:
    """KL divergence of each row from reference logits, in nats."""
    expected = reference.log_softmax(-1)

    def measure(logits: Tensor) -> Tensor:
        found = logits.log_softmax(-1)
        return torch.nn.functional.kl_div(
            found, expected.expand_as(found), log_target=True, reduction="none"
        ).sum(-1)

    return measure
