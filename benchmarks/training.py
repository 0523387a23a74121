"""How fast and how well dictionaries are trained: `python -m benchmarks.training WHAT`.

`step`: CPU time of one layer's step at F = 4,096, over active pairs against dense autograd (wanted:
at most 0.40), with the same batch, loss and Adam. `starts FOLDER`: what each start comes to on the
embedded model at equal L0, tokens and width. `smollm2 MODEL CORPUS FOLDER`: the honest acceptance
on layer 18 of SmolLM2-135M: CPU seconds, error and L0 beside what they are to be.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tracer
from replacement_models.training.config import TrainConfig
from replacement_models.training.losses import island_loss
from replacement_models.training.product import product_of
from replacement_models.training.scales import Scale
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring

TOKENS, WIDTH, FEATURES, L0 = 2048, 576, 4096, 32.0
ROUNDS = 7
WANTED = 0.40
STARTS = ("neurons", "clusters", "data", "random")
RESULTS = Path(__file__).parent / "results"
ACCEPTED = {
    "TopK 32, skip, data": (
        {"dictionary.activation": "topk", "start.features": "data", "run.tokens": 48_000},
        {"error": 0.37, "seconds": 15.0},
    ),
    "TopK 32, skip, neurons": (
        {"dictionary.activation": "topk", "run.tokens": 48_000},
        {"error": 0.30, "seconds": 15.0},
    ),
    "JumpReLU, skip, neurons": (
        {"run.tokens": 76_000, "data.max_tokens": 39_500},
        {"error": 0.26, "seconds": 25.0, "l0": 36.0},
    ),
}
"""What is changed of a run, and what it may come to at most."""


def trainee(activation: str) -> tuple[Trainee, Batch]:
    """One layer of random weights at L0, and a batch of random activations."""
    config = TrainConfig.of(
        {"dictionary": {"features": FEATURES, "l0": L0, "activation": activation}}
    )
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(2))
    found = Trainee(
        config, Wiring.of(config.dictionary, 1), [Scale.of(x, 20.0)], [Scale.of(y, 20.0)]
    )
    with torch.no_grad():
        for weight in (found.W_enc[0], found.W_dec[0]):
            weight.copy_(torch.randn(weight.shape, generator=generator) / WIDTH**0.5)
        for threshold in found.threshold:
            hidden = x @ found.W_enc[0].T
            threshold.fill_(float(hidden.flatten()[::97].quantile(1 - L0 / FEATURES)))
    return found, Batch([x], [y])


def step(found: Trainee, batch: Batch, sparse: bool) -> Callable[[], None]:
    """Forth, back and Adam."""
    optimiser = torch.optim.Adam(found.parameters(), lr=1e-6, fused=True)
    weights, product = torch.tensor([1e-3]), product_of("float32")

    def run() -> None:
        loss, _ = island_loss(found, batch, range(1), product, [sparse], weights)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return run


def seconds(run: Callable[[], None]) -> float:
    """CPU seconds of one call, the fastest of some."""
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times[1:])


def measure_step() -> dict[str, Any]:
    """Microseconds a token, both ways, by activation; turns taken, so that others disturb both."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for activation in ("jump_relu", "topk", "batch_topk"):
        ways = [step(*trainee(activation), sparse) for sparse in (True, False)]
        pairs = [[seconds(way) for way in ways] for _ in range(3)]
        ratios = [sparse / dense for sparse, dense in pairs]
        sparse, dense = (min(side) / TOKENS * 1e6 for side in zip(*pairs, strict=True))
        found[activation] = {
            "sparse_us_a_token": sparse,
            "dense_us_a_token": dense,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "wanted": WANTED,
        }
    return found


def measure_starts(folder: Path) -> dict[str, Any]:
    """Scores of what each start comes to, with and without a skip."""
    found = {}
    for start in STARTS:
        for skip in (False, True):
            name = f"{start}{', skip' if skip else ''}"
            run = tracer.train(
                {
                    "output": str(folder / name.replace(", ", "_")),
                    "dictionary": {"features": 512, "l0": [4.5, 2.5, 4, 3.5], "skip": skip},
                    "start": {"features": start, "tokens": 12_000},
                    "optimiser": {"rate": 2e-3},
                    "data": {
                        "max_tokens": 105_000,
                        "buffer": 16_384,
                        "held_out": 0.05,
                        "prompts": 12,
                        "cache": str(folder / "activations"),
                    },
                    "run": {"tokens": 120_000, "batch": 512, "threads": 1},
                }
            )
            found[name] = {"error": run.worth.error_weighted, "replaced": run.summary["replaced"]}
    return found


def measure_smollm2(model: str, corpus: str, folder: Path) -> dict[str, Any]:
    """The honest acceptance on layer 18, harvesting left out: activations come from a cache."""
    base: dict[str, Any] = {
        "model": model,
        "dictionary": {"features": 2048, "l0": 32, "layers": [18], "skip": True},
        "start": {"tokens": 16_384},
        "data": {
            "corpus": corpus,
            "context": 128,
            "max_tokens": 26_500,
            "buffer": 16_384,
            "held_out": 0.08,
            "prompts": 0,
        },
        "run": {"batch": 512, "threads": 1, "log_every": 20},
    }
    found = {}
    for name, (changes, most) in ACCEPTED.items():
        config = json.loads(json.dumps(base)) | {"output": str(folder / name.replace(", ", "_"))}
        for field, value in changes.items():
            section, last = field.split(".")
            config.setdefault(section, {})[last] = value
        config["data"]["cache"] = str(folder / f"activations_{config['data']['max_tokens']}")
        begin = time.process_time()
        run = tracer.train(config)
        got = {
            "error": run.worth.error_weighted[0],
            "error_unweighted": run.worth.error[0],
            "affine": run.worth.affine[0],
            "l0": run.worth.l0[0],
            "seconds": run.summary["cpu_seconds"],
            "all_seconds": time.process_time() - begin,
        }
        found[name] = {"got": got, "most": most}
        print(json.dumps({name: found[name]}), flush=True)
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, and keep under results/."""
    what, *rest = arguments
    places = {"step": measure_step, "starts": measure_starts, "smollm2": measure_smollm2}
    given: list[Any] = [*rest[:-1], Path(rest[-1])] if rest else []
    found = places[what](*given)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(found, indent=2) + "\n"
    (RESULTS / f"training_{what}.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
