"""Several ranks beside one process: `python -m tests.ranks FOLDER WHAT...`, which forks them.

`gradients`: those of every architecture. `batches`: the stream of tokens. `runs`: whole runs, saved
by some and taken up by others, lost and taken up. `rare`: features left out. Fails where
anything differs.
"""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replacement_models import ModelError, ReplacementModel, load_transcoder
from replacement_models.training import firing, shards
from replacement_models.training.config import TrainConfig
from replacement_models.training.dealt import DealtBatches
from replacement_models.training.loop import Loop
from replacement_models.training.losses import Found, island_loss
from replacement_models.training.pool import Batches, Place
from replacement_models.training.product import product_of
from replacement_models.training.ranks import Ranks
from replacement_models.training.source import Source
from replacement_models.training.torchrun import SaidElsewhereError, ranks_begun
from replacement_models.training.train import Run, _source
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring
from tests.test_replacement_models_training_step import (
    ACTIVATIONS,
    FEATURES,
    KINDS,
    LAYERS,
    TOKENS,
    config,
    filled,
)
from tests.training_runs import same, settings, trained

LAYOUTS = ((2, 2), (4, 4), (4, 2))
"""Ranks, and how many of them share out the features."""


def tell(number: int, count: int, port: int) -> None:
    """What torchrun tells a rank."""
    os.environ |= {
        "RANK": str(number),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def together(
    count: int, work: Callable[[], Any], killed: int | None = None, said: Path = Path(os.devnull)
) -> list[int]:
    """Do something in as many processes.

    Args:
        count: of processes.
        work: what each does.
        killed: the one that gets SIGKILL in its eighth step.
        said: where their errors are written, a line each.

    Returns:
        Their exit codes, 2 of those that had an error that a user can mend.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 3
            try:
                if number == killed:
                    die_in_step(8)
                tell(number, count, port)
                work()
                code = 0
            except SaidElsewhereError:
                code = 2
            except ModelError as error:
                code = 2
                with said.open("a") as file:
                    file.write(f"{error}\n")
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def die_in_step(number: int) -> None:
    """Have this process killed in its `number`-th step."""
    usual, count = Loop.step, iter(range(1, number + 1))

    def step(self: Loop, batch: Batch) -> Any:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(self, batch)

    Loop.step = step  # type: ignore[method-assign]


# Gradients


def found_by(
    trainee: Trainee, batch: Batch, sparse: bool
) -> tuple[dict[str, Tensor], float, list[Found]]:
    """Gradients by name, their norm, and what is reported."""
    weights = torch.full((LAYERS,), 0.05, dtype=batch.inputs[0].dtype)
    reports: list[Found] = []
    for island in trainee.wiring.islands:
        loss, some = island_loss(
            trainee, batch, island, product_of("float32"), [sparse] * LAYERS, weights
        )
        loss.backward()
        for one in trainee.ranks.adding(shards.gradients(trainee, island)):
            one.wait()
        reports += some
    grads = {
        name: torch.zeros_like(one) if one.grad is None else one.grad
        for name, one in trainee.named_parameters()
    }
    return grads, float(shards.gradient_norm(trainee)), reports


def split(trainee: Trainee, ranks: Ranks) -> Trainee:
    """One rank's rows of a dictionary."""
    found = Trainee(trainee.config, trainee.wiring, trainee.reads, trainee.writes, ranks)
    found = found.to(trainee.b_dec[0].dtype)
    with torch.no_grad():
        for (name, own), (_, whole) in zip(
            [*found.named_parameters(), *found.named_buffers()],
            [*trainee.named_parameters(), *trainee.named_buffers()],
            strict=True,
        ):
            own.copy_(part_of(name, whole, ranks))
    return found


def part_of(name: str, whole: Tensor, ranks: Ranks) -> Tensor:
    if name.split(".")[0] in shards.SHARED:
        return whole
    own = ranks.features(FEATURES)
    return whole[:, own] if name == "silent" else whole[own]


def compare(given: TrainConfig, ranks: Ranks, sparse: bool) -> None:
    """Fail where a rank finds anything else than a process alone."""
    tolerance = 1e-6
    trainee, batch = filled(given, torch.float32, dead=True)
    size = TOKENS // ranks.parts
    mine = batch.rows(slice(ranks.part * size, (ranks.part + 1) * size))
    own, norm, reports = found_by(split(trainee, ranks), mine, sparse)
    expected, whole_norm, expected_reports = found_by(trainee, batch, sparse)
    largest = max(float(one.abs().max()) for one in expected.values())
    for name, one in expected.items():
        off = (own[name] - part_of(name, one, ranks)).abs().max()
        assert float(off) <= tolerance * largest, (name, float(off) / largest)
    assert abs(norm / whole_norm - 1) <= tolerance, (norm, whole_norm)
    for report, one in zip(reports, expected_reports, strict=True):
        assert torch.equal(report.l0, one.l0)
        assert torch.equal(report.fired, one.fired[ranks.features(FEATURES)])
        for field in ("error", "plain", "penalty"):
            assert torch.allclose(getattr(report, field), getattr(one, field), rtol=4 * tolerance)


def compare_thresholds(ranks: Ranks) -> None:
    """BatchTopK's, exact and from a sample, are one process's bit by bit."""
    hidden = torch.randn(TOKENS, FEATURES, generator=torch.Generator().manual_seed(0))
    size = TOKENS // ranks.parts
    own = hidden[ranks.part * size : (ranks.part + 1) * size, ranks.features(FEATURES)]
    for most in (1 << 20, 100):
        firing.EXACT_BELOW = most
        for l0 in (0.5, 3.0, 12.0, 39.9):
            expected = firing.batch_threshold(hidden, l0)
            assert torch.equal(firing.batch_threshold(own, l0, ranks), expected), (most, l0)
    firing.EXACT_BELOW = 1 << 20


def gradients(folder: Path) -> None:
    """Every architecture on every layout."""
    for count, shared in LAYOUTS:

        def work(shared: int = shared) -> None:
            asked = TrainConfig.of({"ranks": {"shards": shared}})
            with ranks_begun(asked) as ranks:
                compare_thresholds(ranks)
                for kind, activation in product(KINDS, ACTIVATIONS):
                    given = config(**KINDS[kind], activation=activation)
                    for sparse in (True, False) if ranks.count == 2 else (True,):
                        compare(given, ranks, sparse)

        assert together(count, work) == [0] * count, (count, shared)


# Runs

RUN: dict[str, Any] = {
    "dictionary": {"kind": "cross_layer", "features": 64, "activation": "jump_relu"},
    "run": {"tokens": 10 * 256, "batch": 256, "checkpoint_every": 3, "log_every": 2, "threads": 1},
    "loss": {"dead_after": 500, "revive_every": 4},
    "divergence": {"share": 0.2, "rows": 2},
    "data": {"rows": 4, "context": 32, "max_tokens": 6000, "buffer": 1024, "held_out_tokens": 512},
}


def run(folder: Path, shared: int | None = None, **changed: Any) -> Callable[[], Run]:
    sections = RUN | {"run": RUN["run"] | changed, "ranks": {"shards": shared}}
    return partial(trained, folder, **sections)


def batches(folder: Path) -> None:
    """Each rank's tokens are its part of the stream that one process reads, bit by bit."""
    model = ReplacementModel.without_dictionary(None, "cpu", "float32")
    place = Place(1, 2)

    def source_of(data: dict[str, Any]) -> Source:
        given = TrainConfig.of(settings(folder, **RUN | {"data": data}))
        wiring = Wiring.of(given.dictionary, 4)
        return _source(given, model, wiring, folder, lambda *_: None)

    alone = source_of(RUN["data"])
    stream = Batches(alone, alone.rows.chunks, 128, 0)
    while stream.place != place:
        next(stream)
    expected = [next(stream) for _ in range(8)]

    def work(data: dict[str, Any]) -> None:
        with ranks_begun(TrainConfig.of({"ranks": {"shards": 2}})) as ranks:
            source = ranks.first_then_others(partial(source_of, data))
            dealt = DealtBatches.of(source, ranks, 128, 0, ranks.parts)
            dealt.place = place
            for batch in expected:
                own, some = batch.rows(slice(64 * ranks.part, 64 * (ranks.part + 1))), next(dealt)
                for x, y in zip(own.inputs, some.inputs, strict=True):
                    assert torch.equal(x, y)
                for x, y in zip(own.outputs, some.outputs, strict=True):
                    assert torch.equal(x, y)
            assert source.harvested < 0.4 * alone.harvested

    kept = RUN["data"] | {"cache": str(folder / "activations")}
    for data in (RUN["data"], kept, kept):  # without a cache, written, read
        assert together(4, partial(work, data)) == [0] * 4


def difference(first: Path, second: Path) -> float:
    """The largest of two finished dictionaries, relative to the largest weight of each tensor."""
    worst = 0.0
    one, other = (load_transcoder(folder / "transcoder") for folder in (first, second))
    for at in one.present:
        a, b = one.layers[at], other.layers[at]
        rows = torch.arange(len(a.W_enc))
        sides = [(one.W_enc, one.b_enc, one.b_dec, one.decoder.rows(rows)) for one in (a, b)]
        for x, y in zip(*sides, strict=True):
            worst = max(worst, float((x - y).abs().max() / x.abs().max()))
    return worst


def equal(first: Path, second: Path) -> bool:
    return same(*(load_transcoder(one / "transcoder") for one in (first, second)))


def without_end(folder: Path, copy: Path) -> Path:
    """A run as it was before its dictionary was written."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "transcoder", ignore_errors=True)
    return copy


def rare(folder: Path) -> None:
    """What features are left out does not depend on who counts."""
    below: dict[str, Any] = {"drop_below": 4000}
    assert together(2, run(folder / "two", **below)) == [0, 0]
    left_out = json.loads((folder / "two" / "summary.json").read_text())["left_out"]
    assert sum(left_out), left_out
    for name, count, shared in (("one", 1, None), ("four", 4, 2), ("data", 2, 1)):
        copy = without_end(folder / "two", folder / name)
        work = run(copy, shared, **below)
        assert together(count, work) == [0] * count if count > 1 else work()
        assert difference(folder / "two", copy) <= 1e-6, name


def runs(folder: Path) -> None:
    """Whole runs: what is exported, taken up by others, lost and taken up."""
    model = ReplacementModel.without_dictionary(None, "cpu", "float32")
    ReplacementModel.without_dictionary = staticmethod(lambda *_: model)  # type: ignore[method-assign]
    run(folder / "alone")()
    assert together(2, run(folder / "two")) == [0, 0]
    assert difference(folder / "alone", folder / "two") < 1e-3  # ten steps of rounding
    one, four = (without_end(folder / "two", folder / name) for name in ("one", "four"))
    run(one)()
    assert together(4, run(four, 2)) == [0] * 4
    assert difference(folder / "two", one) <= 1e-6
    assert difference(folder / "two", four) <= 1e-6
    said = folder / "said.txt"
    assert together(2, run(folder / "lost"), killed=1, said=said) == [2, -signal.SIGKILL]
    line = (
        f"rank 1 of 2 was lost; the same command goes on from the last checkpoint in {folder}/lost"
    )
    assert said.read_text() == f"{line}\n"
    one, four = (
        without_end(folder / "lost", folder / f"{name} goes on") for name in ("one", "four")
    )
    assert together(2, run(folder / "lost")) == [0, 0]
    assert equal(folder / "two", folder / "lost")
    run(one)()
    assert together(4, run(four, 4)) == [0] * 4
    assert difference(folder / "two", one) < 1e-4
    assert difference(folder / "two", four) < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        place = Path(sys.argv[1])
        (place / name).mkdir()
        {"gradients": gradients, "batches": batches, "runs": runs, "rare": rare}[name](place / name)
        sys.stdout.write(f"{name}: held\n")
        sys.stdout.flush()
