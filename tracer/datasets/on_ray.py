"""Prompts over the processes, or machines, of a Ray cluster: a shard a task.

Every worker loads the model once and traces whole shards, each as it is traced without Ray; their
rows come back through Ray's object store, and this process alone writes. At most two shards a
worker are asked for at once, so that neither the store nor this process fills. A worker that dies
is started again, and its shard with it.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from graphs.collections import shards
from replacement_models import ReplacementModel
from tracer.datasets.one import Done, done
from tracer.datasets.plan import How, Plan, weights_digest
from tracer.datasets.products import Products
from tracer.datasets.prompts import Prompt, one_line
from tracer.datasets.shard import Shard
from tracer.errors import TraceError
from tracer.features.store import FeatureStore

LOCAL = "local"
"""In place of an address: a cluster of this machine's processors, for this call alone."""
STORE = 1 << 28
"""Bytes of the object store of such a cluster; what does not fit goes to disk."""
TRIES = 3
"""How often a worker, and its shard, is begun again."""
ASKED = 2
"""Shards a worker that are asked for at once."""
REACHED = 10.0
"""Seconds in which an address must answer."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""What a cluster of our own is told: nothing leaves the machine."""
Task = tuple[int, Sequence[tuple[int, Prompt]]]
"""A shard, and the prompts of it that are missing, by number."""


class Worker:
    """A process with the model."""

    def __init__(self, loaded_with: Mapping[str, Any], digest: str, threads: int) -> None:
        """Load the model, and see that it is the one that was asked for."""
        torch.set_num_threads(threads)
        self.model = ReplacementModel.load(**loaded_with)
        if weights_digest(self.model) != digest:
            raise TraceError(
                "a worker of Ray loads other weights than this process has: they were changed in "
                "memory, or its files differ"
            )

    @torch.no_grad()
    def traced(self, how: How, task: Task, products: Mapping[str, str]) -> list[Done]:
        """Trace the missing prompts of a shard."""
        found, known = [], dict(products)
        for number, prompt in task[1]:
            found.append(done(self.model, how, number, prompt, known))
            known |= {name: way for name, way in found[-1].products.items() if name not in known}
        return found


def check_ray(model: ReplacementModel, address: str) -> None:
    """Refuse what cannot go over Ray before anything is written.

    Raises:
        TraceError: Ray is not installed, nobody listens at the address, or the model was not loaded
            from files.
    """
    _loaded_with(model)
    _imported()
    _reach(address)


def trace_on_ray(
    model: ReplacementModel,
    asked: Plan,
    address: str,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    """Trace the missing prompts of a dataset.

    Args:
        model: as every worker loads it.
        asked: what to do.
        address: "local", or of a cluster, as `ray.init` takes it.
        workers: processes with a model; None: one a processor, or a GPU where the model is on one.
        progress: called after every shard.

    Raises:
        TraceError: Ray is not installed or not to be reached, the model was not loaded from files,
            or workers died again and again.
    """
    loaded_with = _loaded_with(model)
    products, tasks = Products(asked.out), _tasks(asked)
    finished = len(asked.prompts) - sum(len(missing) for _, missing in tasks)
    progress(finished, len(asked.prompts))
    if not tasks:
        return
    with _cluster(address, workers) as ray, _one_line(ray):
        count = min(workers or _processors(ray, model), len(tasks))
        given = (loaded_with, asked.about["weights_digest"], 1)
        actors = [_actor(ray, model).remote(*given) for _ in range(count)]
        for number, found in _traced(ray, actors, asked, tasks, products):
            working = Shard(asked, number)
            for one in found:
                products.add(one.products)
                working.add(one)
            working.keep()
            finished += len(found)
            progress(finished, len(asked.prompts))


def _traced(
    ray: Any,
    actors: Sequence[Any],
    asked: Plan,
    tasks: Sequence[Task],
    products: Products,
) -> Iterator[tuple[int, list[Done]]]:
    """Shards as they are finished, in any order."""
    how = ray.put(replace(asked.how, settings=_sent(asked.how.settings)))
    waiting, running = list(reversed(tasks)), dict[Any, tuple[int, Any]]()

    def ask(actor: Any) -> None:
        if waiting:
            task = waiting.pop()
            running[actor.traced.remote(how, task, products.known)] = task[0], actor

    for _ in range(ASKED):
        for actor in actors:
            ask(actor)
    while running:
        [ready], _ = ray.wait(list(running), num_returns=1)
        number, actor = running.pop(ready)
        found = ray.get(ready)
        del ready  # the store lets go of it
        yield number, found
        ask(actor)


def _tasks(asked: Plan) -> list[Task]:
    """Shards with prompts that are missing."""
    found: list[Task] = []
    for number in range(asked.shards):
        if shards.count(asked.out, number) < len(asked.numbers(number)):
            missing = Shard(asked, number).missing
            found.append((number, [(one, asked.prompts[one]) for one in missing]))
    return found


def _actor(ray: Any, model: ReplacementModel) -> Any:
    gpus = 1 if model.device.type == "cuda" else 0
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": TRIES, "max_task_retries": TRIES}
    return ray.remote(**options)(Worker)


def _processors(ray: Any, model: ReplacementModel) -> int:
    kind = "GPU" if model.device.type == "cuda" else "CPU"
    return max(1, int(ray.cluster_resources().get(kind, 1)))


def _loaded_with(model: ReplacementModel) -> dict[str, Any]:
    if model.loaded_with is None:
        raise TraceError(
            "the model was made in memory, and workers of Ray load theirs from files: take "
            "ReplacementModel.load, or leave ray out"
        )
    if len(model.host.devices) > 1:
        places = ", ".join(map(str, model.host.devices))
        raise TraceError(
            f"ray: the model is spread over {places}, and a worker has one device: load it on one, "
            "or leave ray out"
        )
    held = dict(model.loaded_with)
    if model.device.type == "cuda":
        held |= {"device": "cuda", "device_map": None}  # a worker sees its own alone
    return held


def _sent(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a worker can read them, in whatever folder."""
    store = settings["store"]
    if store is not None:
        path = store.path if isinstance(store, FeatureStore) else store
        store = str(Path(path).absolute())
    return {**settings, "store": store}


def _imported() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise TraceError(
            f"ray is not installed ({error}): pip install 'tracer[ray]', or leave --ray out"
        ) from error


@contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[Any]:
    """Ray, connected; a cluster that was begun here ends here."""
    ray = _imported()
    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    if address == LOCAL:
        settings |= {"num_cpus": workers, "object_store_memory": STORE}
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update({name: value for name, value in QUIET.items() if before[name] is None})
    try:
        try:
            ray.init(address=address, logging_level="ERROR", **settings)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise TraceError(f"Ray at {address!r}: {one_line(error)}") from error
        yield ray
    finally:
        ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else None


def _reach(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, OverflowError) as error:
        raise TraceError(f"Ray at {address!r}: {one_line(error)}") from error


@contextmanager
def _one_line(ray: Any) -> Iterator[None]:
    """Say what went wrong in a worker in one line."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        said = cause if isinstance(cause, Exception) else error
        raise TraceError(
            f"Ray: {one_line(said)}: what was finished is kept, the same call goes on from it"
        ) from error
