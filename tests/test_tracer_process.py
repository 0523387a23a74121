"""Nothing of a call outlives it, and calls in several threads give what they give one by one."""

import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

import tracer
from graphs import AttributionGraph
from replacement_models import ModelError, ReplacementModel
from replacement_models.process import one_call, quiet_transformers
from replacement_models.speed import allocator, threads
from replacement_models.speed.threads import side_by_side
from tests.random_models import PROMPT, language_model, transcoder
from tracer import Intervention, patching
from tracer.attribution import chunks, product
from tracer.attribution.memory import Estimate
from tracer.patching import Kind, PatchSite
from tracer.validation.resample_ablation import Resampling, outside, resample_ablation

ROOT = Path(__file__).parents[1]
CHANGE = [Intervention(layer=0, position=2, feature=3, scale=2.0)]
SITES = [PatchSite(Kind.HEAD, 1, 2, 3), PatchSite(Kind.RESIDUAL, 1, 4), PatchSite(Kind.MLP, 0, 1)]
OTHER = (1, 3, 12, 5, 22, 9)
TEXTS = [[(3 * n + k * k) % 27 + 2 for k in range(12)] for n in range(30)]


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """More than one, and not what torch would take by itself."""
    with threads.threads(3):
        yield


def made(family: str = "llama", attention: str = "sdpa") -> ReplacementModel:
    """A random model whose attention layers return no patterns unless asked to."""
    model = language_model(family, attn_implementation=attention)
    return ReplacementModel.from_huggingface(model, None, transcoder(), name="random")


@cache
def graph() -> AttributionGraph:
    """One to validate and to patch along."""
    return tracer.trace(made(), PROMPT)


def metric(logits: Tensor) -> Tensor:
    """One token's logit."""
    return logits[:, 5]


def an_edge() -> tuple[str, str]:
    """From a feature to a logit."""
    nodes = graph().nodes.to_pylist()
    return next(node["id"] for node in nodes if node["kind"] == "feature"), nodes[-1]["id"]


CALLS: dict[str, Callable[[ReplacementModel], Any]] = {
    "record": lambda model: model.record(PROMPT),
    "record, patterns made anew": lambda model: (
        model.record(PROMPT, keep_patterns=False).layers[1].attention_pattern()
    ),
    "trace": lambda model: tracer.trace(model, PROMPT),
    "trace with a cap": lambda model: tracer.trace(model, PROMPT, max_features=9, rank_every=4),
    "trace, patterns made anew": lambda model: tracer.trace(model, PROMPT, recompute_patterns=True),
    "intervene": lambda model: tracer.intervene(model, PROMPT, CHANGE),
    "intervene, free": lambda model: tracer.intervene(model, PROMPT, CHANGE, "free"),
    "generate": lambda model: tracer.generate(model, [PROMPT], CHANGE, max_new_tokens=3),
    "validate": lambda model: tracer.validate(model, graph(), [PROMPT, OTHER], draws=1),
    "means": lambda model: tracer.corpus_means(model, [PROMPT]),
    "maxima": lambda model: tracer.feature_maxima(model, [PROMPT]),
    "contrast": lambda model: tracer.contrast(model, [(PROMPT, OTHER)], 1),
    "lens": lambda model: tracer.lens(model, PROMPT, "local", tokens=[3]),
    "fit a tuned lens": lambda model: tracer.fit_lens(model, TEXTS, "tuned", steps=1),
    "fit a Jacobian lens": lambda model: tracer.fit_lens(model, TEXTS, "jacobian", steps=1),
    "direction": lambda model: tracer.direction(model, [(PROMPT, OTHER), (OTHER[:4], PROMPT[:4])]),
    "probe": lambda model: tracer.probe(model, TEXTS[:4], list("abab"), 1, controls=1),
    "patchscope": lambda model: tracer.patchscope(model, PROMPT, 1, 2, OTHER, max_new_tokens=2),
    "patch": lambda model: patching.patch(model, PROMPT, OTHER, metric, sites=SITES),
    "patch to first order": lambda model: patching.patch(
        model, PROMPT, OTHER, metric, sites=SITES, method="attribution"
    ),
    "ablate": lambda model: patching.ablate(model, PROMPT, metric, sites=SITES),
    "path patch": lambda model: patching.path_patch(model, graph(), [an_edge()], metric),
    "resample": lambda model: resample_ablation(
        model, PROMPT, Resampling("h", tuple(SITES), (OTHER,)), metric
    ),
    "outside": lambda model: outside(model, graph(), [OTHER]),
    "load": lambda model: ReplacementModel.load(),
}


def state(model: ReplacementModel) -> dict[str, Any]:
    """What calls change while they run."""
    from transformers.utils import logging

    hf = model.host.model
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "type": torch.get_default_dtype(),
        "attention": hf.config._attn_implementation,
        "experts": getattr(hf.config, "_experts_implementation", None),
        "hooks": sum(len(getattr(part, name)) for part in hf.modules() for name in hooks),
        "modes": torch._C._len_torch_function_stack(),
        "kernel": product.kernel.get(),
        "freed memory": allocator._given,
        "verbosity": logging.get_verbosity(),
        "bars": logging.is_progress_bar_enabled(),
    }


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_leaves_the_process_and_the_model_as_they_were(call: Callable[..., Any]):
    model = made()
    graph()
    before = state(model)
    call(model)
    assert state(model) == before


def test_parts_of_a_model_get_their_own_attention_implementation_back():
    model = made("gemma3")
    config = model.host.model.config
    config.vision_config._attn_implementation = "eager"
    tracer.trace(model, PROMPT)
    assert config.text_config._attn_implementation == "sdpa"
    assert config.vision_config._attn_implementation == "eager"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_is_broken_off_leaves_them_too(error: type[BaseException]):
    model = made()
    before = state(model)

    def fail(*_: Any) -> Any:
        torch.set_num_threads(2)
        raise error

    for call in (
        partial(tracer.trace, model, PROMPT, on_estimate=fail),
        partial(tracer.trace, model, PROMPT, progress=fail, recompute_patterns=True),
        partial(patching.patch, model, PROMPT, OTHER, fail),
        partial(patching.patch, model, PROMPT, OTHER, fail, method="attribution"),
    ):
        with pytest.raises(error):
            call()
        assert state(model) == before
    assert tracer.trace(model, PROMPT).effect.nnz


class Glibc:
    """Writes down which options are set."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, parameter: int, value: int) -> None:
        self.options[parameter] = value

    def malloc_trim(self, pad: int) -> None:
        self.trimmed += 1


@pytest.fixture
def glibc(monkeypatch: pytest.MonkeyPatch) -> Glibc:
    """In place of the C library."""
    library = Glibc()
    monkeypatch.setattr(allocator, "_glibc", lambda: [library])
    return library


def test_options_of_the_c_library_end_with_the_call(glibc: Glibc):
    model, seen = made(), []
    model.record(PROMPT)
    assert not glibc.options
    for _ in range(2):
        tracer.trace(model, PROMPT, progress=lambda *_: seen.append(dict(glibc.options)))
        assert glibc.options == allocator.RAISED
    assert seen[0] == seen[-1] == allocator.KEPT


def test_a_call_inside_another_leaves_the_others_options(glibc: Glibc):
    with one_call():
        allocator.keep_freed(True)
        with one_call():
            allocator.keep_freed(False)
            torch.set_num_threads(1)
            assert glibc.options == allocator.HANDED_BACK
        assert glibc.options == allocator.KEPT
        assert torch.get_num_threads() == 3
    assert glibc.options == allocator.RAISED


def test_freed_memory_is_kept_while_a_process_grows_by_no_more_than_it_may(
    glibc: Glibc, monkeypatch: pytest.MonkeyPatch
):
    held = 1000
    monkeypatch.setattr(allocator, "own_memory", lambda: held)
    with one_call():
        allocator.keep_freed(True, 500)
        held = 1500
        allocator.stay_within()
        assert glibc.options == allocator.KEPT
        assert not glibc.trimmed
        held = 1501
        allocator.stay_within()
        assert glibc.options == allocator.HANDED_BACK
        assert glibc.trimmed == 1
        held += allocator.STEP
        allocator.stay_within()
        assert glibc.trimmed == 1
        held += 1
        allocator.stay_within()
        assert glibc.trimmed == 2
    allocator.stay_within()
    assert glibc.trimmed == 2
    assert glibc.options == allocator.RAISED


def test_chunks_are_swept_within_what_a_trace_was_estimated_to_take(
    glibc: Glibc, monkeypatch: pytest.MonkeyPatch
):
    held = 0
    monkeypatch.setattr(allocator, "own_memory", lambda: held)

    def grow(need: Estimate, by: int) -> None:
        nonlocal held
        held += need.whole + by

    tracer.trace(made(), PROMPT, on_estimate=partial(grow, by=0))
    assert not glibc.trimmed
    tracer.trace(made(), PROMPT, on_estimate=partial(grow, by=1))
    assert glibc.trimmed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process holds")
def test_memory_of_its_own_is_what_a_process_touches():
    """Memory straight from the system: a tensor's may be what the C library had kept."""
    ones = bytes([1]) * (64 << 20)
    with mmap.mmap(-1, len(ones), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        before = allocator.own_memory()
        own.write(ones)
        assert 0.9 * len(ones) < allocator.own_memory() - before < 1.5 * len(ones)


@pytest.mark.skipif(not allocator._glibc(), reason="the C library is not GNU's")
def test_work_after_a_trace_takes_no_more_fresh_memory_than_before():
    """Of a megabyte each, arrays come from what the C library keeps; 256 pages each otherwise."""
    code = """if True:
        import resource, torch, tracer
        from tests.random_models import PROMPT, replacement_model
        tracer.trace(replacement_model(), PROMPT)
        ones = torch.ones(1 << 17, dtype=torch.float64)
        for _ in range(10):
            ones * ones
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            ones * ones
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert int(done.stdout) < 2560


def test_logging_of_transformers_is_what_it_was():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    with pytest.raises(KeyboardInterrupt), quiet_transformers():
        raise KeyboardInterrupt
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def numbers(found: Any) -> Any:
    """All that a call returns, for comparison."""
    if isinstance(found, AttributionGraph):
        return found.nodes.to_pylist(), found.edges.to_pylist(), found.metadata
    if isinstance(found, pa.Table):
        return found.to_pylist()
    if isinstance(found, Tensor):
        return found.tolist()
    if isinstance(found, list | tuple):
        return [numbers(part) for part in found]
    if hasattr(found, "__dataclass_fields__"):
        return {name: numbers(getattr(found, name)) for name in found.__dataclass_fields__}
    return found


def jobs(models: list[ReplacementModel], prompts: list[tuple[int, ...]]) -> list[Callable[[], Any]]:
    """What several threads shall do at once."""
    calls: list[Callable[[ReplacementModel, tuple[int, ...]], Any]] = [
        lambda model, prompt: tracer.trace(model, prompt),
        lambda model, prompt: tracer.trace(model, prompt, recompute_patterns=True),
        lambda model, prompt: tracer.intervene(model, prompt, CHANGE),
        lambda model, prompt: tracer.generate(model, [prompt], CHANGE, max_new_tokens=2),
        lambda model, prompt: model.record(prompt),
        lambda model, prompt: patching.patch(model, prompt, OTHER, metric, sites=SITES),
    ]
    return [
        partial(call, model, prompt) for call in calls for model in models for prompt in prompts
    ]


@pytest.mark.parametrize("count", [1, 2], ids=["one model", "two models"])
def test_four_threads_give_what_one_gives(count: int):
    models = [made("llama"), made("gpt2")][:count]
    wanted = jobs(models, [PROMPT, OTHER, (*PROMPT[:5], 8)])
    one_by_one = [numbers(job()) for job in wanted]
    before, together = [state(model) for model in models], Barrier(4)
    with ThreadPoolExecutor(4, initializer=together.wait) as pool:
        at_once = list(pool.map(lambda job: numbers(job()), wanted))
        threads_there = set(pool.map(lambda _: torch.get_num_threads(), range(8)))
    assert at_once == one_by_one
    assert threads_there == {3}
    assert [state(model) for model in models] == before


def test_a_thread_that_fails_lets_the_next_one_go_on():
    model, failed = made(), []

    def fail() -> None:
        try:
            tracer.trace(model, [])
        except ModelError as error:
            failed.append(error)

    for _ in range(2):
        thread = Thread(target=fail)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert len(failed) == 2
    assert tracer.trace(model, PROMPT).effect.nnz


def test_a_call_from_inside_a_call_needs_no_turn():
    model = made()
    whole = tracer.trace(model, PROMPT)
    inner: list[Any] = []
    tracer.trace(model, PROMPT, progress=lambda *_: inner.append(tracer.trace(model, PROMPT)))
    assert inner
    assert all(numbers(one) == numbers(whole) for one in inner)


def test_another_thread_waits_for_the_end_of_a_call():
    order: list[str] = []

    def second() -> None:
        with one_call():
            order.append("second")

    waiting = Thread(target=second)
    with one_call():
        waiting.start()
        waiting.join(0.1)
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"]


def test_worker_threads_of_a_trace_belong_to_it(monkeypatch: pytest.MonkeyPatch):
    used: list[int] = []
    shared = chunks.side_by_side

    def watched(call: Any, parts: Any) -> None:
        used.append(len(parts))
        shared(call, parts)

    monkeypatch.setattr(chunks, "side_by_side", watched)
    model = made()
    remade = tracer.trace(model, PROMPT, recompute_patterns=True)  # asks for patterns in workers
    assert max(used) >= 3
    kept = tracer.trace(model, PROMPT)
    assert abs(remade.effect - kept.effect).max() < 1e-9


def test_a_kernel_is_seen_by_worker_threads_and_by_no_other():
    seen: dict[str, list[Any]] = {"workers": [], "others": []}

    @contextmanager
    def others() -> Iterator[None]:
        thread = Thread(target=lambda: seen["others"].append(product.kernel.get()))
        thread.start()
        thread.join()
        yield

    kernel: Any = object()
    with product.taking_products(kernel), others():
        side_by_side(lambda _: seen["workers"].append(product.kernel.get()), [1, 2, 3, 4])
    assert seen == {"workers": [kernel] * 4, "others": [None]}
    assert product.kernel.get() is None
