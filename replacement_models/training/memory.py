"""How much memory a run will take, and what would fit where it is too much."""

from dataclasses import dataclass, replace

import torch

from replacement_models.errors import ModelError
from replacement_models.speed.available import free_on
from replacement_models.training.config import TrainConfig
from replacement_models.training.sparsity import CALIBRATED
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
class Share:
    """What of a run is one rank's."""

    shards: int = 1
    """Ranks that share out the features."""
    parts: int = 1
    """Ranks that share out the tokens of a batch."""
    together: int = 1
    """Ranks that share this machine's memory."""


ALONE = Share()


@dataclass(frozen=True)
class Plan:
    """Bytes by what they are for; of several ranks those of one."""

    parameters: int
    """With gradients and averages."""
    batch: int
    """What a step takes, or setting thresholds if that is more."""
    buffer: int
    """Activations that batches are drawn from, and the two chunks they come from."""
    start: int
    """What finding the first features takes at most, before there are gradients."""

    @property
    def total(self) -> int:
        """At the worst moment."""
        return self.buffer + max(self.parameters + self.batch, self.parameters // 4 + self.start)


def planned(config: TrainConfig, wiring: Wiring, width: int, share: Share = ALONE) -> Plan:
    """The plan of a run.

    Args:
        config: sizes.
        wiring: layers.
        width: of the model.
        share: of one rank.
    """
    chosen, layers = config.dictionary, len(wiring.layers)
    features, tokens = chosen.features // share.shards, config.run.batch // share.parts
    slots = [1 if chosen.tied else len(wiring.slots(at)) for at in range(layers)]
    counts = [count // share.shards for count in chosen.features_of(layers)]
    count = sum(n * (width * (1 + m) + 3) for n, m in zip(counts, slots, strict=True))
    count += layers * width * (width + 1 if chosen.skip else 1)
    together = max(len(island) for island in wiring.islands)
    sparse = max(chosen.l0) < config.run.sparse_below * chosen.features
    hidden = tokens * features * (HIDDEN if sparse else DENSE * together)
    ends = len(chosen.prefixes) + 1
    totals = ends * together * (1 if share.shards == 1 else 3)
    writes = tokens * width * (4 * together + 2 * totals + 4 * min(wiring.span, layers))
    a_token = 2 * layers * width
    joint = chosen.features * min(wiring.span, layers)
    ranks, l0 = share.shards * share.parts, wiring.l0(chosen.l0)
    # margins kept while thresholds are set: of all layers, and of one as ranks lay them together
    margins = max(config.data.held_out_tokens, CALIBRATED) * (2 * sum(l0) + 3 * ranks * max(l0))
    copies = COPIES + (2 * share.shards if ranks > 1 and config.divergence.share else 0)
    whole = 0 if ranks == 1 else config.start.tokens * a_token + 4 * chosen.features * width
    gram = (joint if joint <= 8192 else chosen.features) ** 2
    return Plan(
        parameters=count * FLOAT * copies,
        batch=(hidden + max(writes, round(margins))) * FLOAT,
        buffer=(3 * config.data.buffer // ranks + config.data.held_out_tokens) * a_token * FLOAT,
        start=(config.start.tokens * (256 + 6 * width) + 4 * gram + whole) * FLOAT,
    )


def check_memory(config: TrainConfig, wiring: Wiring, width: int, share: Share = ALONE) -> Plan:
    """Refuse a run that does not fit, and say what would.

    Returns:
        The plan.

    Raises:
        ModelError: more is needed than the device has free.
    """
    plan, free = planned(config, wiring, width, share), free_on(torch.device(config.run.device))
    if free is not None and torch.device(config.run.device).type == "cpu":
        free //= share.together
    if free is None or plan.total <= MARGIN * free:
        return plan
    each = "" if share == ALONE else " for each rank"
    raise ModelError(
        f"memory: this run needs {shown(plan.total)} on {config.run.device}{each}, "
        f"{shown(free)} are free (parameters, gradients and Adam {shown(plan.parameters)}, buffer "
        f"{shown(plan.buffer)}, a step {shown(plan.batch)}); "
        f"{_fitting(config, wiring, width, MARGIN * free, share)}"
    )


def _fitting(config: TrainConfig, wiring: Wiring, width: int, most: float, share: Share) -> str:
    """The largest changes that would fit, one at a time or together."""
    least = replace(
        config,
        data=replace(config.data, buffer=2 * config.run.batch, held_out_tokens=2048),
    )
    for said, base in (("", config), (_buffer_words(least), least)):
        if said and planned(base, wiring, width, share).total <= most:
            return f"what would fit: {said}"
        features = _features(base, wiring, width, most, share)
        if features:
            return f"what would fit: {said}{', ' if said else ''}dictionary.features {features}"
    return "fewer layers, or a smaller run.batch, would fit"


def _buffer_words(config: TrainConfig) -> str:
    data = config.data
    return f"data.buffer {data.buffer}, data.held_out_tokens {data.held_out_tokens}"


def _features(config: TrainConfig, wiring: Wiring, width: int, most: float, share: Share) -> int:
    """The largest number of features, in steps of 64 a rank, that fits; 0 where none does."""
    size = 64 * share.shards
    low = max(int(max(config.dictionary.l0)) + 1, *config.dictionary.prefixes, 1) // size + 1
    high = config.dictionary.features // size
    fitting = 0
    while low <= high:
        middle = (low + high) // 2
        some = replace(
            config, dictionary=replace(config.dictionary, features=size * middle, widths=None)
        )
        if planned(some, wiring, width, share).total <= most:
            fitting, low = size * middle, middle + 1
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
