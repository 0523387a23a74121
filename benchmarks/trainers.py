"""Our trainer against the peers' own: `python -m benchmarks.trainers FOLDER --peers PYTHON ...`.

The embedded default's activations are written to a file once. Every side reads the same rows in the
same order, once, in a process of its own with one thread, and trains dictionaries of the same width
at five settings of its sparsity: clt-training (EleutherAI; untied decoders, as ours), CLT-Forge
(LLM-Interp), sparsify (EleutherAI; per-layer), and SAELens on planted features (`trainer_planted`).
Each side's learning rate is the one of four with the least error on the first third of the rows at
the middle setting, ours too. What was changed of the peers' code stands in `trainer_peers`.

Measured alike for all, on text that nobody trained on: error as a share of the variance and active
features a token, means over layers; dead features; KL and agreement with all MLPs replaced; the
replacement score of graphs, the mean over prompts. Tokens a CPU second are of training alone, its
start and end included, imports and loading left out.

"At equal L0": our error, KL, speed and score at a peer's L0 are read off our five points, straight
lines over log L0 between neighbours, of logarithms but for the scores, which are taken as they are;
a peer's point beyond our range is compared with nothing.

`--peers` can import what the peers need; `--clt-training`, `--clt-forge`, `--sparsify` are their
checkouts. A run that is there already is not made again. Three quarters of an hour of a free
core.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import RESULTS, output_file
from benchmarks.trainer_curves import compared, table
from benchmarks.trainer_figures import Text, read
from benchmarks.trainer_planted import Planted
from benchmarks.trainer_rows import TOLD, Job
from replacement_models.speed.choice_file import processor_name

ROOT = Path(__file__).parents[1]
PEERS_MODULE = "benchmarks.trainer_peers"


@dataclass(frozen=True)
class Side:
    """A trainer, and what it is run at."""

    name: str
    against: str
    """Our side that it is compared with; its own name for ours."""
    settings: tuple[float, ...]
    rates: tuple[float, ...]
    python: str = sys.executable
    module: str = PEERS_MODULE
    source: str = ""
    planted: bool = False
    """It learns planted features, not the model's MLPs."""

    @property
    def ours(self) -> bool:
        """Whether it is ours."""
        return self.name == self.against


def sides(arguments: argparse.Namespace) -> list[Side]:
    """All of them; a peer without a checkout is left out."""
    l0, tuned = (2.0, 3.0, 4.0, 6.0, 9.0), (2e-3, 4e-3, 8e-3, 1.6e-2)
    wide, own = (1.5, 3.0, 4.5, 7.0, 11.0), "benchmarks.trainer_own"
    about, fast = (1.9, 3.0, 4.0, 6.0, 9.5), (4e-3, 8e-3, 1.6e-2, 3e-2)
    found = [
        Side(name, name, wide, tuned, module=own) for name in ("tracer", "tracer per-layer")
    ] + [Side("tracer sae", "tracer sae", about, fast, module=own, planted=True)]
    peer, forge = str(arguments.peers), ((0.5, 1.0, 2.0, 4.0, 8.0), (4e-4, 1.2e-3, 4e-3, 1.2e-2))
    tunes = {
        "sparsify": ("tracer per-layer", l0, (1e-3, 2e-3, 4e-3, 1e-2), arguments.sparsify),
        "clt-training": ("tracer", l0, tuned, arguments.clt_training),
        "CLT-Forge": ("tracer", *forge, arguments.clt_forge),
    }  # fmt: skip
    found.append(Side("SAELens", "tracer sae", l0, (1e-3, 3e-3, 1e-2, 3e-2), peer, planted=True))
    return found + [
        Side(name, against, settings, rates, peer, source=str(source))
        for name, (against, settings, rates, source) in tunes.items()
        if source is not None
    ]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    tokens: int = 614_400
    batch: int = 512
    features: int = 1024
    prompts: int = 12
    planted: int = 614_400
    """Tokens of planted features."""


def trained(side: Side, job: Job) -> dict[str, Any]:
    """Run a job, unless it has been run, and what it says of itself.

    Raises:
        SystemExit: the side failed.
    """
    out = Path(job.out)
    if not (out / TOLD).is_file():
        out.mkdir(parents=True, exist_ok=True)
        job.write(out / "job.json")
        call = [side.python, "-m", side.module, str(out / "job.json")]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(
            call, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True, check=False
        )
        if done.returncode or not (out / TOLD).is_file():
            raise SystemExit(f"{side.name} failed at {job.setting:g}:\n{done.stderr[-2000:]}")
    return json.loads((out / TOLD).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Comparison:
    """All sides on the same rows."""

    folder: Path
    sizes: Sizes
    text: Text
    planted: Planted

    def job(self, side: Side, setting: float, rate: float, tokens: int) -> Job:
        """One run."""
        rows = self.planted if side.planted else self.text
        name = f"{side.name}_{setting:g}_{rate:g}_{tokens}".replace(" ", "_")
        return Job(
            side.name, str(rows.written(self.sizes.batch)), str(self.folder / name), tokens,
            self.sizes.batch, rows.features(self.sizes.features), setting, rate, side.source,
        )  # fmt: skip

    def figures(self, side: Side, job: Job, whole: bool = True) -> dict[str, Any]:
        """What a run's dictionary is worth, kept beside it."""
        told = trained(side, job)
        path = Path(job.out) / f"figures_{whole}.json"
        if not path.is_file():
            measure = self.planted if side.planted else self.text
            path.write_text(json.dumps(measure.figures(read(job), whole)))
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            "side": side.name, "against": side.against, "setting": job.setting, "rate": job.rate,
            "tokens_a_cpu_second": told["tokens"] / told["seconds"],
            "tokens": told["tokens"], "checksum": told["checksum"], **found,
        }  # fmt: skip

    def rate_of(self, side: Side) -> tuple[float, dict[str, float]]:
        """The best of a side's learning rates, and the error of each on a third of the rows."""
        batches = self.sizes.tokens // self.sizes.batch
        some, middle = batches // 3 * self.sizes.batch, side.settings[len(side.settings) // 2]
        errors = {
            f"{rate:g}": self.figures(side, self.job(side, middle, rate, some), False)["error"]
            for rate in side.rates
        }
        return min(side.rates, key=lambda rate: errors[f"{rate:g}"]), errors

    def runs(self, all_sides: Sequence[Side]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Every side at every setting, and the errors that its rate was chosen by.

        Raises:
            SystemExit: two sides did not train on the same rows in the same order.
        """
        found, tried = [], {}
        for side in all_sides:
            rate, tried[side.name] = self.rate_of(side)
            for setting in side.settings:
                job = self.job(side, setting, rate, self.sizes.tokens)
                found.append(self.figures(side, job))
                print(json.dumps(found[-1]), flush=True)
        check_same_rows(all_sides, found)
        return found, tried


def check_same_rows(all_sides: Sequence[Side], runs: Sequence[dict[str, Any]]) -> None:
    """Hold every run to the same rows in the same order.

    Raises:
        SystemExit: one read others, fewer, or in another order.
    """
    for planted in (False, True):
        names = {side.name for side in all_sides if side.planted == planted}
        seen = {(one["tokens"], one["checksum"]) for one in runs if one["side"] in names}
        if len(seen) > 1:
            raise SystemExit(f"{', '.join(sorted(names))} did not train on the same rows: {seen}")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trainers on the same rows, side by side.")
    parser.add_argument("folder", type=Path, help="for rows and runs, taken up where it left off")
    parser.add_argument("--peers", type=Path, required=True, metavar="PYTHON")
    for name in ("--clt-training", "--clt-forge", "--sparsify"):
        parser.add_argument(name, type=Path, metavar="DIR")
    parser.add_argument("--tokens", type=int, default=Sizes.tokens, help="that each run trains on")
    parser.add_argument("--out", type=output_file, default=RESULTS / "trainers.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Train, measure, print a table, write JSON."""
    torch.set_num_threads(1)
    given = parsed(arguments)
    sizes = Sizes(tokens=given.tokens, planted=given.tokens)
    given.folder.mkdir(parents=True, exist_ok=True)
    text = Text(given.folder, sizes.tokens, prompts=sizes.prompts)
    planted = Planted(given.folder, sizes.planted)
    comparison = Comparison(given.folder.resolve(), sizes, text, planted)
    runs, tried = comparison.runs(sides(given))
    found = {
        "processor": processor_name(), "threads": 1, "sizes": asdict(sizes), "runs": runs,
        "errors_by_rate": tried, "at_equal_l0": compared(runs),
    }  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main(sys.argv[1:])
