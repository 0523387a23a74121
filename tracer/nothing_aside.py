"""What follows the residual stream alone says so where blocks of a model stand aside of it."""

from replacement_models import ReplacementModel
from tracer.errors import TraceError


def nothing_aside(model: ReplacementModel, what: str) -> None:
    """Refuse a model of which some block writes to what the next one reads, not to the stream.

    Args:
        model: the model.
        what: names what was asked for.

    Raises:
        TraceError: it has such a block (Zamba).
    """
    aside = [layer for layer, block in enumerate(model.host.blocks) if block.aside]
    if aside:
        raise TraceError(
            f"{what} cannot be had: layer {aside[0]} of this {model.host.family} model is a shared "
            "block that writes nothing to the residual stream; traces, interventions and patching "
            "go through it"
        )
