"""What training on several cards takes, on paper: `python -m benchmarks.training_plan`.

A cross-layer transcoder of Gemma-2-2B with 426k features, a billion tokens, eight cards of 80 GB
(H100 SXM). Nothing is run: bytes come from `memory.planned`, what every run is checked against,
the rest is counted below from shapes. Rates are the makers' times `REACHED`, which is a guess.
"""

from dataclasses import dataclass

from replacement_models.training.config import TrainConfig
from replacement_models.training.memory import Share, planned
from replacement_models.training.wiring import Wiring

LAYERS, WIDTH, MODEL = 26, 2304, 2.6e9
CARDS, TOKENS, FLOAT = 8, 1_000_000_000, 4
PRODUCTS, MEMORY, LINK = 989e12, 3.35e12, 450e9
"""Operations a second in bfloat16, bytes a second to and from memory, bytes a second sent."""
REACHED = 0.4, 0.6, 0.7
"""Share of each that is taken for reached."""
CONFIG = TrainConfig.of(
    {
        "model": "google/gemma-2-2b",
        "dictionary": {"kind": "cross_layer", "features": 16_384, "l0": 20},
        "data": {"corpus": "texts", "buffer": 65_536, "held_out_tokens": 8192},
        "run": {"tokens": TOKENS, "batch": 4096, "device": "cuda", "checkpoint_every": 10_000},
    }
)


@dataclass(frozen=True)
class Work:
    """One thing that a step does, on each card."""

    name: str
    operations: float = 0.0
    moved: float = 0.0
    """Bytes to and from the card's memory."""
    sent: float = 0.0
    """Bytes to other cards."""

    @property
    def seconds(self) -> float:
        """At the rates above; operations and memory of one thing overlap, sending waits."""
        products, memory, link = REACHED
        here = max(self.operations / (PRODUCTS * products), self.moved / (MEMORY * memory))
        return here + self.sent / (LINK * link)


def works(shards: int) -> list[Work]:
    """What a step does, `shards` cards sharing out the features and the others the tokens."""
    parts = CARDS // shards
    tokens, features = CONFIG.run.batch // parts, CONFIG.dictionary.features // shards
    blocks, active = LAYERS * (LAYERS + 1) // 2, CONFIG.dictionary.l0[0] / shards
    own = features * WIDTH * (LAYERS + blocks) * FLOAT
    outputs, rows = tokens * LAYERS * WIDTH * FLOAT, tokens * active * blocks * WIDTH * FLOAT
    arriving = 2 * outputs * (CARDS - 1) / CARDS
    return [
        Work("model over its rows", operations=2 * MODEL * CONFIG.run.batch / CARDS),
        Work("tokens change hands", sent=arriving),
        Work("encoder product", operations=2 * tokens * features * WIDTH * LAYERS),
        Work("decoder rows: forth, back twice", operations=6 * rows / FLOAT, moved=3 * rows),
        Work("all-reduce of outputs", sent=2 * outputs * (shards - 1) / shards),
        Work("all-reduce of gradients", sent=2 * own * (parts - 1) / parts),
        Work("gradients, norm, Adam", moved=10 * own),
    ]


def lines() -> list[str]:
    """The page's figures, as Markdown."""
    wiring = Wiring.of(CONFIG.dictionary, LAYERS)
    count = CONFIG.dictionary.features * WIDTH * (LAYERS + LAYERS * (LAYERS + 1) // 2)
    found = [f"{LAYERS * CONFIG.dictionary.features:,} features, {count / 1e9:.1f}B weights.", ""]
    layouts = (8, 4, 2)
    head = [f"{one} x {CARDS // one}" for one in layouts]
    plans = [planned(CONFIG, wiring, WIDTH, Share(one, CARDS // one)) for one in layouts]
    memory = {
        "weights, gradients, Adam": [plan.parameters for plan in plans],
        "a step": [plan.batch for plan in plans],
        "tokens held": [plan.buffer for plan in plans],
        "the model, bfloat16": [2 * MODEL] * len(plans),
        "together": [plan.total + 2 * MODEL for plan in plans],
    }
    found += table("GB a card, shards x parts", head, memory, 1e9)
    each = [works(one) for one in layouts]
    traffic = {
        items[0].name: [one.sent for one in items]
        for items in zip(*each, strict=True)
        if any(one.sent for one in items)
    }
    found += table("GB sent a card and step", head, traffic, 1e9)
    times = {items[0].name: [one.seconds for one in items] for items in zip(*each, strict=True)}
    times["a step"] = [sum(one.seconds for one in items) for items in each]
    found += table("milliseconds", head, times, 1e-3)
    hours = [CONFIG.steps * seconds / 3600 for seconds in times["a step"]]
    found += table(f"hours, {CONFIG.steps:,} steps", head, {"in all": hours}, 1.0)
    kept = count * FLOAT
    found += [
        f"A checkpoint is {3 * kept / 1e9:.0f} GB, {3 * kept / CARDS / 1e9:.0f} GB from each card "
        f"where all of them share out the features; two are kept. At the end the first rank holds "
        f"the dictionary twice in main memory, {2 * kept / 1e9:.0f} GB, and writes it, "
        f"{kept / 1e9:.0f} GB."
    ]
    return found


def table(title: str, head: list[str], rows: dict[str, list[float]], unit: float) -> list[str]:
    """One table in Markdown."""
    found = [f"| {title} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name, values in rows.items():
        found.append(f"| {name} | {' | '.join(f'{value / unit:.1f}' for value in values)} |")
    return [*found, ""]


if __name__ == "__main__":
    print("\n".join(lines()))
