"""Many prompts to one dataset: `python -m benchmarks.many_prompts [FILE.json] [--quick]`.

Prompts of all behaviours of the embedded default, drawn from a seed, one thread. Five parts, each
alone with `--only PART`:

speed: graphs a CPU second, writing included, and how far the resident set rises, in a process of
its own; beside it a quarter of the prompts, so that growth would show.
equal: graphs of the dataset beside single traces: the same nodes, weights within 1e-6.
kills: copies of this process trace and are killed (SIGKILL) at random moments, each taken up by the
next, until the dataset is done; it must be the bytes of an unbroken run. Then the same of a driver
of Ray and of its workers.
ray: wall time of two local workers over one, with their start and from the first shard on.
peer: CPU seconds of a loop of circuit-tracer over ours, the same prompts and weights, both with
writing, ours pruned and with scores, theirs without and with its pruning; with `--peer PYTHON`, an
environment that has it.
real: with `--real FOLDER`, a model and its own neurons: 50 bare questions, a cap of 128 features;
graphs a CPU second, memory and bytes, and three of them beside single traces.

A quarter of an hour of two cores; `--quick` takes few prompts and writes nothing, `--only` puts
what it measured into the file beside what stands there.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import tracer
from benchmarks.consensus import every_behaviour
from benchmarks.output import RESULTS, output_file
from graphs.collections.columns import TIMES
from replacement_models import (
    ReplacementModel,
    load_transcoder,
    save_transcoder,
)
from replacement_models.formats.one_width import of_one_width
from replacement_models.tiny.recipe.facts import PACKAGE

SEED, WITHIN = 0, 1e-6
PARTS = ("speed", "equal", "kills", "ray", "peer", "real")
ASKED = {"graphs a CPU second": 8.0, "two workers over one": 1.7}


class Sizes(NamedTuple):
    """How much of everything."""

    prompts: int
    equal: int
    """Graphs compared with single traces."""
    killed: int
    """Prompts of a dataset whose writers are killed."""
    kills: int
    ray: int
    ray_kills: int
    peer: int
    real: int


FULL, QUICK = Sizes(1000, 100, 60, 40, 400, 10, 100, 50), Sizes(40, 5, 12, 4, 24, 1, 4, 2)
CAP, WORDS, SINGLE = 128, 8, 3
"""Of the real model: features a graph, words a prompt at most, graphs beside single traces."""


def drawn(model: ReplacementModel, count: int) -> list[dict[str, Any]]:
    """Prompts of all behaviours in turn, each once, with the behaviour as a column."""
    rng, found = random.Random(SEED), []
    known = {name: rng.sample(some, len(some)) for name, some in every_behaviour(model).items()}
    while len(found) < count:
        for name, some in known.items():
            if some:
                found.append({"prompt": some.pop().text, "behaviour": name})
    return found[:count]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset that two runs agree in."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != TIMES)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def resident() -> float:
    """The largest resident set of this process so far, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


# Children: a process of their own


def child(folder: Path, count: int, shard: int, workers: int | None) -> dict[str, Any]:
    """Trace to a folder, and say what it took."""
    torch.set_num_threads(1)
    model = ReplacementModel.load()
    prompts = drawn(model, count)
    tracer.trace(model, prompts[0]["prompt"])
    before, begin, cpu = resident(), time.perf_counter(), time.process_time()
    done: list[tuple[int, float]] = []
    tracer.trace_many(
        model, prompts, folder, shard=shard, workers=workers, ray="local" if workers else None,
        progress=lambda number, total: done.append((number, time.perf_counter() - begin)),
    )  # fmt: skip
    first = next((one for one in done if one[0] > 0), done[-1])
    return {
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - begin,
        "from_first": (done[-1][0] - first[0], done[-1][1] - first[1]),
        "mib_before": before,
        "mib": resident(),
    }


def started(folder: Path, count: int, shard: int, workers: int | None) -> subprocess.Popen[str]:
    """A child, begun."""
    given = [str(folder), str(count), str(shard), str(workers or 0)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.many_prompts", "--child", *given],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ran(folder: Path, count: int, shard: int = 64, workers: int | None = None) -> dict[str, Any]:
    """What a child says, run to its end."""
    process = started(folder, count, shard, workers)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a child ended with {process.returncode}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


# The parts


def speed(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Graphs a CPU second and resident set."""
    rows = {}
    for count in (sizes.prompts // 4, sizes.prompts):
        took = ran(folder / f"speed{count}", count)
        size = bytes_of(folder / f"speed{count}")
        rows[str(count)] = {
            "graphs a CPU second": round(count / took["cpu_seconds"], 3),
            "CPU seconds": round(took["cpu_seconds"], 2),
            "seconds": round(took["seconds"], 2),
            "MiB with the model": round(took["mib_before"], 1),
            "MiB at most": round(took["mib"], 1),
            "KiB of Parquet a graph": round(size / count / 1024, 2),
        }
    return rows


def equal(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Graphs of a dataset beside single traces."""
    model = ReplacementModel.load()
    prompts = drawn(model, sizes.equal)
    dataset = tracer.trace_many(model, prompts, folder / "equal")
    traced = sum(status == "traced" for status in column(dataset, "status"))
    found = beside_single(model, dataset, prompts, len(prompts))
    return found | {"holds": found["holds"] and traced == len(prompts)}


def beside_single(
    model: ReplacementModel,
    dataset: tracer.GraphDataset,
    prompts: Sequence[dict[str, Any]],
    count: int,
    **settings: Any,
) -> dict[str, Any]:
    """The first graphs of a dataset beside single traces: the same nodes, weights within 1e-6."""
    worst, same = 0.0, 0
    for number in range(count):
        graph = dataset.graph(number)
        single = tracer.trace(model, prompts[number]["prompt"], **settings).prune()
        same += graph.nodes.select(["id", "kind"]).equals(single.nodes.select(["id", "kind"]))
        if graph.effect.shape == single.effect.shape:
            worst = max(worst, float(np.abs((graph.effect - single.effect).data).max(initial=0)))
    return {
        "graphs": count,
        "same nodes": same,
        "largest difference of a weight": worst,
        "holds": same == count and worst <= WITHIN,
    }


def real(folder: Path, sizes: Sizes, name: str) -> dict[str, Any]:
    """A real model by its own neurons, on questions of few words."""
    torch.set_num_threads(1)
    known = drawn(ReplacementModel.load(), 40 * sizes.real)
    prompts = [one for one in known if len(one["prompt"].split()) <= WORDS][: sizes.real]
    model = ReplacementModel.load(name, transcoders="neurons")
    tracer.trace(model, prompts[0]["prompt"], max_features=CAP)
    before, begin, cpu = resident(), time.perf_counter(), time.process_time()
    dataset = tracer.trace_many(model, prompts, folder / "real", max_features=CAP)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - begin
    most = resident()
    rows = {part: sum(column(dataset, f"kept_{part}")) for part in ("nodes", "edges")}
    size = {part: bytes_of(folder / "real" / part) for part in ("nodes", "edges", "prompts")}
    return {
        "model": Path(name).name,
        "prompts": len(prompts),
        "features at most": CAP,
        "graphs": sum(status == "traced" for status in column(dataset, "status")),
        "graphs a CPU second": round(len(prompts) / cpu, 3),
        "CPU seconds": round(cpu, 1),
        "seconds": round(seconds, 1),
        "MiB with the model": round(before, 1),
        "MiB at most": round(most, 1),
        "nodes traced a graph": round(sum(column(dataset, "traced_nodes")) / len(prompts), 1),
        "edges traced a graph": round(sum(column(dataset, "traced_edges")) / len(prompts), 1),
        "nodes a graph": round(rows["nodes"] / len(prompts), 1),
        "edges a graph": round(rows["edges"] / len(prompts), 1),
        "bytes a node": round(size["nodes"] / rows["nodes"], 1),
        "bytes an edge": round(size["edges"] / rows["edges"], 1),
        "bytes a prompt": round(size["prompts"] / len(prompts), 1),
        "uncovered in the mean": round(sum(column(dataset, "uncovered")) / len(prompts), 3),
        "single": beside_single(model, dataset, prompts, min(SINGLE, len(prompts)),
                                max_features=CAP),
    }  # fmt: skip


def bytes_of(folder: Path) -> int:
    """Size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def column(dataset: tracer.GraphDataset, name: str) -> list[Any]:
    """A column of the table of prompts."""
    found: list[Any] = dataset.prompts.to_table(columns=[name])[name].to_pylist()
    return found


def whole(folder: Path, count: int) -> bool:
    """Whether what stands there can be read, no prompt twice."""
    if not (folder / "settings.json").is_file():
        return True
    dataset = tracer.GraphDataset.load(folder)
    numbers = column(dataset, "prompt")
    graphs = sum(1 for _ in dataset.graphs())
    return len(set(numbers)) == len(numbers) == graphs <= count


def forked(work: Any) -> int:
    """A copy of this process at work."""
    number = os.fork()
    if number == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return number


def kills(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Copies of this process killed at random moments, each taken up by the next."""
    torch.set_num_threads(1)
    model, rng = ReplacementModel.load(), random.Random(SEED)
    prompts = drawn(model, sizes.killed)

    def work(out: Path) -> None:
        tracer.trace_many(model, prompts, out, shard=4)

    begin = time.perf_counter()
    work(folder / "unbroken")
    expected, span = contents(folder / "unbroken"), time.perf_counter() - begin
    killed = datasets = torn = other = 0
    while killed < sizes.kills:
        out = folder / f"killed{datasets}"
        datasets += 1
        for _ in range(sizes.kills - killed):
            number = forked(lambda out=out: work(out))
            time.sleep(rng.uniform(0, span / 3))
            os.kill(number, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0:
                break  # it was done before
            killed += 1
            torn += not whole(out, len(prompts))
        work(out)
        other += contents(out) != expected
        shutil.rmtree(out)
    ray = ray_kills(folder, sizes, expected)
    holds = torn == other == 0 and ray["other bytes"] == 0
    return {
        "kills": killed, "datasets": datasets, "torn after a kill": torn, "other bytes": other,
        "ray": ray, "holds": holds,
    }  # fmt: skip


def ray_kills(folder: Path, sizes: Sizes, expected: dict[str, bytes]) -> dict[str, Any]:
    """Drivers and workers of Ray killed in turn, at random moments of their work."""
    rng, found = random.Random(SEED), {"driver": 0, "worker": 0, "other bytes": 0}
    for number in range(sizes.ray_kills):
        out, victim = folder / f"ray{number}", ("worker", "driver")[number % 2]
        process = started(out, sizes.killed, 4, 2)
        while process.poll() is None and not (out / "prompts").is_dir():
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2))
        workers = [one for one in descendants(process.pid) if is_worker(one)]
        if victim == "driver":
            process.kill()
            found["driver"] += 1
        elif workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            found["worker"] += 1
        process.communicate()
        if process.returncode:
            ran(out, sizes.killed, 4, 2)
        found["other bytes"] += contents(out) != expected
        shutil.rmtree(out)
    return found


def descendants(number: int) -> Iterator[int]:
    """Processes that a process of ours started, and theirs (Linux)."""
    for task in Path(f"/proc/{number}/task").glob("*/children"):
        for one in task.read_text().split():
            yield int(one)
            yield from descendants(int(one))


def is_worker(number: int) -> bool:
    """Whether a process is an actor of ours."""
    try:
        return b"ray::Worker" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


def ray(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Two local workers over one, on prompts that keep a core busy."""
    took = {n: ran(folder / f"workers{n}", sizes.ray, 8, n) for n in (1, 2)}
    same = contents(folder / "workers1") == contents(folder / "workers2")
    rates = {n: one["from_first"][0] / one["from_first"][1] for n, one in took.items()}
    return {
        "prompts": sizes.ray,
        "seconds, one worker": round(took[1]["seconds"], 2),
        "seconds, two": round(took[2]["seconds"], 2),
        "two over one with their start": round(took[1]["seconds"] / took[2]["seconds"], 3),
        "two over one from the first shard on": round(rates[2] / rates[1], 3),
        "same bytes": same,
    }


def peer(folder: Path, sizes: Sizes, python: str) -> dict[str, Any]:
    """A loop of circuit-tracer beside ours."""
    model = ReplacementModel.load()
    prompts = drawn(model, sizes.peer)
    ids = [list(model.tokenize(one["prompt"])) for one in prompts]
    (folder / "case").mkdir()
    plain = AutoModelForCausalLM.from_pretrained(PACKAGE / "model", dtype=torch.float32)
    plain.save_pretrained(folder / "case" / "model")
    dictionary = load_transcoder(PACKAGE / "clt").to("cpu", torch.float32)
    save_transcoder(of_one_width(dictionary), folder / "case" / "transcoders", "circuit-tracer")
    (folder / "case" / "case.json").write_text(json.dumps({"kind": "cross_layer"}))
    (folder / "case" / "prompts.json").write_text(json.dumps(ids))
    (folder / "theirs").mkdir()
    ours = [ran(folder / "before", sizes.peer)["cpu_seconds"]]
    script = str(Path(__file__).with_name("peer_loop.py"))
    done = subprocess.run(
        [python, script, str(folder / "case"), str(folder / "theirs")],
        check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours.append(ran(folder / "after", sizes.peer)["cpu_seconds"])
    graphs = [tracer.trace(model, tokens) for tokens in ids]
    counts = [graph.nodes["kind"].to_pylist().count("feature") for graph in graphs]
    return {
        "prompts": sizes.peer,
        "CPU seconds, tracer": [round(one, 2) for one in ours],
        "CPU seconds, circuit-tracer": round(theirs["saved"], 2),
        "its pruning": round(theirs["pruned"], 2),
        "its batch size": theirs["batch"],
        "circuit-tracer over tracer": round(theirs["saved"] / min(ours), 2),
        "with its pruning": round((theirs["saved"] + theirs["pruned"]) / min(ours), 2),
        "graphs with as many features": sum(map(int.__eq__, counts, theirs["features"])),
    }


def measure(
    parts: Sequence[str], sizes: Sizes, python: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """What was asked for."""
    work = {"speed": speed, "equal": equal, "kills": kills, "ray": ray}
    work |= {} if python is None else {"peer": partial(peer, python=python)}
    work |= {} if name is None else {"real": partial(real, name=name)}
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "asked": ASKED,
    }
    with TemporaryDirectory() as folder:
        for part in (one for one in parts if one in work):
            found[part] = work[part](Path(folder), sizes)
            print(f"{part}: {json.dumps(found[part], indent=1)}", flush=True)
    return found


def main() -> None:
    """Measure, print and write; or be a child."""
    if sys.argv[1:2] == ["--child"]:
        folder, *numbers = sys.argv[2:]
        count, shard, workers = map(int, numbers)
        print(json.dumps(child(Path(folder), count, shard, workers or None)))
        return
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", nargs="?", type=output_file)
    arguments.add_argument("--quick", action="store_true", help="Few prompts; writes no result.")
    arguments.add_argument("--only", choices=PARTS, action="append", help="Parts; all by default.")
    arguments.add_argument("--peer", help="Python interpreter that can import circuit_tracer")
    arguments.add_argument("--real", metavar="FOLDER", help="A model to be traced by its neurons.")
    given = arguments.parse_args()
    found = measure(given.only or PARTS, QUICK if given.quick else FULL, given.peer, given.real)
    file = given.file or (None if given.quick else RESULTS / "many_prompts.json")
    if given.only and file is not None and file.is_file():
        found = json.loads(file.read_text("utf-8")) | {
            part: found[part] for part in given.only if part in found
        }
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
