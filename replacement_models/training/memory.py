"""How much memory a run will take, and what would fit where it is too much."""

from dataclasses import dataclass, replace

import torch

from replacement_models.errors import ModelError
from replacement_models.speed.available import free_on
from replacement_models.training.config import TrainConfig
from replacement_models.training.wiring import Wiring

FLOAT = 4
COPIES = 4
"""Of each parameter: itself, its gradient, and Adam's two averages."""
HIDDEN = 3
"""Arrays (tokens, features) that stand at once: pre-activations, their mask, and room to select."""
DENSE = 6
"""The same where a step computes over all features."""
MARGIN = 0.9
"""Share of what is free that a run may take."""


@dataclass(frozen=True)
class Plan:
    """Bytes by what they are for."""

    parameters: int
    """With gradients and averages."""
    batch: int
    buffer: int
    """Activations that batches are drawn from, and the two chunks they come from."""
    start: int
    """What finding the first features takes at most, before there are gradients."""

    @property
    def total(self) -> int:
        """At the worst moment."""
        return self.buffer + max(self.parameters + self.batch, self.parameters // 4 + self.start)


def planned(config: TrainConfig, wiring: Wiring, width: int) -> Plan:
    """The plan of a run.

    Args:
        config: sizes.
        wiring: layers.
        width: of the model.
    """
    chosen, layers = config.dictionary, len(wiring.layers)
    slots = [1 if chosen.tied else len(wiring.slots(at)) for at in range(layers)]
    counts = chosen.features_of(layers)
    count = sum(n * (width * (1 + m) + 3) for n, m in zip(counts, slots, strict=True))
    count += layers * width * (width + 1 if chosen.skip else 1)
    together = max(len(island) for island in wiring.islands)
    sparse = max(chosen.l0) < config.run.sparse_below * chosen.features
    hidden = config.run.batch * chosen.features * (HIDDEN if sparse else DENSE * together)
    writes = config.run.batch * width * 6 * together * min(wiring.span, layers)
    a_token = 2 * layers * width
    joint = chosen.features * min(wiring.span, layers)
    gram = (joint if joint <= 8192 else chosen.features) ** 2
    return Plan(
        parameters=count * FLOAT * COPIES,
        batch=(hidden + writes) * FLOAT,
        buffer=(3 * config.data.buffer + config.data.held_out_tokens) * a_token * FLOAT,
        start=(config.start.tokens * (256 + 6 * width) + 4 * gram) * FLOAT,
    )


def check_memory(config: TrainConfig, wiring: Wiring, width: int) -> Plan:
    """Refuse a run that does not fit, and say what would.

    Returns:
        The plan.

    Raises:
        ModelError: more is needed than the device has free.
    """
    plan, free = planned(config, wiring, width), free_on(torch.device(config.run.device))
    if free is None or plan.total <= MARGIN * free:
        return plan
    raise ModelError(
        f"memory: this run needs {shown(plan.total)} on {config.run.device}, {shown(free)} are "
        f"free (parameters, gradients and Adam {shown(plan.parameters)}, buffer "
        f"{shown(plan.buffer)}, a step {shown(plan.batch)}); "
        f"{_fitting(config, wiring, width, MARGIN * free)}"
    )


def _fitting(config: TrainConfig, wiring: Wiring, width: int, most: float) -> str:
    """The largest changes that would fit, one at a time or together."""
    least = replace(
        config,
        data=replace(config.data, buffer=2 * config.run.batch, held_out_tokens=2048),
    )
    for said, base in (("", config), (_buffer_words(least), least)):
        if said and planned(base, wiring, width).total <= most:
            return f"what would fit: {said}"
        features = _features(base, wiring, width, most)
        if features:
            return f"what would fit: {said}{', ' if said else ''}dictionary.features {features}"
    return "fewer layers, or a smaller run.batch, would fit"


def _buffer_words(config: TrainConfig) -> str:
    data = config.data
    return f"data.buffer {data.buffer}, data.held_out_tokens {data.held_out_tokens}"


def _features(config: TrainConfig, wiring: Wiring, width: int, most: float) -> int:
    """The largest number of features, in steps of 64, that fits; 0 where none does."""
    low = max(int(max(config.dictionary.l0)) + 1, *config.dictionary.prefixes, 1) // 64 + 1
    high = config.dictionary.features // 64
    fitting = 0
    while low <= high:
        middle = (low + high) // 2
        some = replace(
            config, dictionary=replace(config.dictionary, features=64 * middle, widths=None)
        )
        if planned(some, wiring, width).total <= most:
            fitting, low = 64 * middle, middle + 1
        else:
            high = middle - 1
    return fitting


def shown(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
