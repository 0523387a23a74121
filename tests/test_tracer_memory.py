"""The estimate before the sweep, what is refused for lack of memory, and what rows are held."""

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import tracer
from replacement_models import ReplacementModel, Transcoder, TranscoderLayer
from replacement_models.speed.available import free_in_memory, free_on
from tests.random_hybrids import hybrid
from tests.random_models import PROMPT, language_model, replacement_model, transcoder
from tracer import TraceError
from tracer.attention.effects import answer_bytes
from tracer.attribution import blocks, memory
from tracer.attribution import trace as attribute
from tracer.attribution.finished import FlooredRun
from tracer.attribution.frontier import Frontier
from tracer.attribution.local_model import linearise, pattern_bytes
from tracer.attribution.memory import Estimate, estimate
from tracer.attribution.sizes import Sizes
from tracer.attribution.sweep import chunk_bytes
from tracer.errors import Setting


def sizes(**changes: Any) -> Sizes:
    """A model of Llama-3.2-1B's size with 40 features a token and layer on a long prompt."""
    positions, layers = 512, 16
    features = np.full((layers, positions), 40)
    features[:, 0] = 0
    usual = Sizes(
        features=features,
        used=np.full(layers, 8000),
        targets=tuple(range(layer, layer + 1) for layer in range(layers)),
        heads=((32, 2048, 8, 512),) * layers,
        d_model=2048,
        vocabulary=128_000,
        logits=10,
        skip_positions=1,
        itemsize=4,
        post_norm=False,
        skips=False,
        lifted=False,
        lazy=False,
        patterns_kept=True,
        on_cpu=True,
        threads=2,
        explained=1000,
        rank_every=125,
        edge_floor=0.0,
    )
    return replace(usual, **changes)


CROSS = tuple(range(layer, 16) for layer in range(16))


@pytest.mark.parametrize(
    ("changes", "need"),
    [
        ({}, 5073105788),
        ({"patterns_kept": False}, 3965809532),
        ({"explained": 1, "logits": 1}, 4466516958),
        ({"explained": 1, "logits": 1, "d_model": 4096}, 7506338782),
        ({"itemsize": 2}, 2848551804),
    ],
)
def test_the_estimate_of_what_steers_attention_is_in_bytes(changes: dict[str, Any], need: int):
    assert int(answer_bytes(sizes(**changes))) == need


@pytest.mark.parametrize(
    ("changes", "device", "host", "stage"),
    [
        ({}, 4947351731, 0, "sweep"),
        ({"explained": 1}, 3890680710, 0, "sweep"),
        ({"explained": 327_040}, 908483007508, 0, "assemble"),
        ({"explained": 20_000}, 16928712003, 0, "sweep"),
        ({"explained": 20_000, "edge_floor": 1e-3}, 4392806784, 0, "sweep"),
        ({"itemsize": 2}, 2934874803, 0, "sweep"),
        ({"itemsize": 8, "explained": 4000}, 13530685943, 0, "sweep"),
        ({"patterns_kept": False}, 4899084467, 0, "sweep"),
        ({"lazy": True, "targets": CROSS}, 25040689331, 0, "sweep"),
        ({"skips": True, "targets": CROSS}, 25174907059, 0, "sweep"),
        ({"on_cpu": False, "explained": 20_000}, 6210779928, 13184265362, "sweep"),
        (
            {"on_cpu": False, "explained": 20_000, "ranked_there": True},
            *(33172806408, 13184265362, "sweep"),
        ),
        (
            {"on_cpu": False, "patterns_kept": False, "explained": 5000},
            *(5573245720, 3715050878, "sweep"),
        ),
        (
            {"features": np.full((16, 8), 40), "lifted": True, "explained": 5120, "folded": 5e7},
            *(526408132, 0, "assemble"),
        ),
        (
            {"features": np.full((16, 100), 40), "threads": 8, "skip_positions": 4}
            | {"explained": 64_000},
            *(35837882126, 0, "assemble"),
        ),
    ],
)
def test_the_estimate_is_what_it_was_when_it_was_measured(
    changes: dict[str, Any], device: int, host: int, stage: str
):
    assert estimate(sizes(**changes)) == Estimate(device, host, stage)


def test_the_estimate_counts_what_must_be_held():
    features, stream = 16 * 511 * 40, 512 * 2048 * 4
    writers = features * 2048 * 4 + 2 * 16 * stream
    patterns = 16 * 32 * 512**2 * 4
    assert estimate(sizes(explained=1)).device > writers + patterns


@pytest.mark.parametrize(
    "less",
    [
        {"explained": 500},
        {"edge_floor": 1e-3},
        {"itemsize": 2},
        {"features": np.full((16, 512), 20)},
    ],
    ids=lambda less: next(iter(less)),
)
def test_asking_for_less_needs_less(less: dict[str, Any]):
    assert estimate(sizes(**less)).device < estimate(sizes()).device


def test_with_an_edge_floor_memory_does_not_grow_with_sources_times_rows():
    row = 8 / 1e-3
    few, many = (estimate(sizes(edge_floor=1e-3, explained=n)).device for n in (10_000, 20_000))
    assert many - few < 10_000 * (row * 5 + 2000)
    free = estimate(sizes(explained=20_000)).device - estimate(sizes(explained=10_000)).device
    assert free > 20 * (many - few)


def test_on_a_gpu_finished_rows_stand_beside_it():
    need = estimate(sizes(on_cpu=False, explained=20_000))
    assert need.host > 20_000 * 0.4 * sizes().active * 4
    assert need.device < estimate(sizes(explained=20_000)).device
    assert estimate(sizes()).host == 0


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_without_a_cap_the_entries_are_counted_exactly(kind: str):
    model = replacement_model("llama", kind=kind)
    seen: list[Sizes] = []
    check = memory.check

    def watched(*arguments: Any) -> Estimate:
        seen.append(arguments[1])
        return check(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribute, "check", watched)
        graph = tracer.trace(model, PROMPT)
    rows, edges = blocks.entries(seen[0])
    assert rows == edges == graph.effect.nnz
    assert seen[0].active == graph.metadata["active_features"]


def test_a_trace_that_does_not_fit_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch):
    def never(*_: Any) -> None:
        raise AssertionError("the trace went on")

    monkeypatch.setattr(attribute, "linearise", never)
    monkeypatch.setattr(memory, "FIXED", 0.0)
    with pytest.raises(TraceError) as refusal:
        tracer.trace(replacement_model("llama"), PROMPT, memory_limit=1e-5)
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith("memory: the trace needs about ")
    assert "1e-05 GB are allowed (memory_limit)" in message


def test_rows_go_to_disk_where_they_are_many_or_would_not_fit(monkeypatch: pytest.MonkeyPatch):
    model, given = replacement_model("llama"), sizes(explained=20_000)
    need, rows = estimate(given).device, memory.rows_bytes(given)
    monkeypatch.setattr(memory, "fits_on_disk", lambda size: size == rows)

    def on_disk(limit: float, above: float) -> bool:
        return memory.with_rows_on_disk(model, given, limit, above).on_disk

    assert on_disk(math.inf, (need - 100) / 1e9)
    assert not on_disk(math.inf, (need + 100) / 1e9)
    assert not on_disk((need + 100) / 1e9, 1e6)
    assert on_disk((need - 100) / 1e9, 1e6)
    assert not on_disk((need - 100) / 1e9, math.inf)
    monkeypatch.setattr(memory, "fits_on_disk", lambda size: False)
    assert not on_disk(math.inf, 0.0)


def test_rows_on_disk_take_no_memory_but_those_of_a_block():
    given = sizes(explained=2000)
    rows, disk = memory.rows_bytes(given), replace(given, on_disk=True)
    block = rows * blocks.largest_block(given) / 2000
    saved = estimate(given).device - estimate(disk).device
    assert 2 * block < rows - 10 * block < saved < rows


def test_without_a_limit_what_is_free_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_on", lambda device: 1000)
    with pytest.raises(TraceError, match=r"8\.5e-07 GB may be taken, 85% of what is free"):
        tracer.trace(replacement_model("llama"), PROMPT)
    graph = tracer.trace(replacement_model("llama"), PROMPT, memory_limit=math.inf)
    assert graph.effect.nnz
    monkeypatch.setattr(memory, "free_on", lambda device: None)
    assert tracer.trace(replacement_model("llama"), PROMPT).effect.nnz


def refusal_of(model: ReplacementModel, given: Sizes, limit: float) -> TraceError:
    with pytest.raises(TraceError) as refusal:
        memory.check(model, given, limit)
    return refusal.value


def refused(model: ReplacementModel, given: Sizes, limit: float) -> str:
    return str(refusal_of(model, given, limit))


def test_a_refusal_names_options_that_fit():
    model = replacement_model("llama")
    given = sizes(explained=20_000)
    need = estimate(given).device / 1e9
    message = refused(model, given, need - 1)
    for setting in ("max_features=", "edge_floor=", "dtype='bfloat16' when loading"):
        assert setting in message
    most = int(message.split("max_features=")[1].split()[0])
    assert estimate(replace(given, explained=most)).device <= (need - 1) * 1e9
    assert estimate(replace(given, explained=int(most * 1.2))).device > (need - 1) * 1e9
    memory.check(model, replace(given, explained=most), need - 1)


def test_patterns_and_decoders_are_named_where_dropping_them_is_enough():
    model = replacement_model("llama")
    decoders = 4 * sum(math.prod(layer.decoder.shape) for layer in model.transcoder.layers)
    given = sizes(threads=1)
    message = refused(model, given, estimate(given).device / 1e9 - decoders / 1e9)
    assert "recompute_patterns=True (" in message
    assert "lazy=True when loading (" in message


def test_options_that_fit_only_together_are_named_together():
    given = sizes(explained=200_000)
    least = replace(given, edge_floor=1e-3, patterns_kept=False, explained=2000)
    limit = (estimate(least).device - pattern_bytes(given).sum()) / 1e9
    message = refused(replacement_model("llama"), given, limit)
    together = "edge_floor=0.001, recompute_patterns=True, lazy=True when loading, max_features="
    assert f"; {together}" in message
    assert message.endswith("GB) would fit")
    assert "shorten the prompt" in refused(replacement_model("llama"), sizes(), 0.01)


def test_python_is_told_parameters_and_the_command_line_options():
    given = sizes(explained=200_000)
    least = replace(given, edge_floor=1e-3, patterns_kept=False, explained=2000)
    limit = (estimate(least).device - pattern_bytes(given).sum()) / 1e9
    error = refusal_of(replacement_model("llama"), given, limit)
    (proposal,) = error.proposals
    most = proposal.settings[-1].value
    assert proposal.settings == (
        Setting("edge_floor", 1e-3),
        Setting("recompute_patterns", True),
        Setting("lazy", True),
        Setting("max_features", most),
    )
    assert proposal.bytes <= limit * 1e9 + pattern_bytes(given).sum()
    assert "--" not in str(error)
    assert str(error).endswith(f"max_features={most} ({proposal.estimate}) would fit")
    line = error.for_command_line()
    assert f"{limit:.2g} GB are allowed (--memory-limit); " in line
    options = f"--edge-floor 0.001 --recompute-patterns --lazy --max-features {most}"
    assert line.endswith(f"; {options} ({proposal.estimate}) would fit")


def test_what_steers_attention_is_counted_before_it_is_sought(monkeypatch: pytest.MonkeyPatch):
    given = sizes(explained=20_000)
    steered = estimate(replace(given, keep_attention=True))
    assert steered.stage == "answer"
    assert steered.device > estimate(given).device
    model = replacement_model("llama")
    limit = (estimate(given).device + 1e6) / 1e9
    error = refusal_of(model, replace(given, keep_attention=True), limit)
    assert "keep_attention=False (17 GB)" in str(error)
    assert "without --keep-attention (17 GB)" in error.for_command_line()
    seen, real = [], memory.check

    def heard(model: ReplacementModel, needed: Sizes, limit: float | None) -> Estimate:
        seen.append(needed.keep_attention)
        return real(model, needed, limit)

    monkeypatch.setattr(attribute, "check", heard)
    for keep in (False, True):
        tracer.trace(model, PROMPT, max_features=3, keep_attention=keep)
    assert seen == [False, True]


@pytest.mark.parametrize("family", ["mamba2", "lfm2", "qwen3_next"])
def test_what_stands_around_patterns_is_counted(family: str):
    model = hybrid(family)
    recording = model.record(PROMPT)
    options = {"logits": 5, "max_features": None, "rank_every": None, "edge_floor": 0.0}
    given = memory.sizes_of(model, recording, skip_positions=1, **options)
    for block, (values, outputs) in zip(model.host.blocks, given.around, strict=True):
        assert (values > 0) == (block.taps is not None or block.by_kernel)
        assert (outputs > 0) == (not block.plain)
    assert chunk_bytes(given, 8) > chunk_bytes(replace(given, around=()), 8)
    patterns = sum(frozen.attention_pattern().nbytes for frozen in recording.layers)
    assert pattern_bytes(given).sum() == patterns


def test_an_error_without_parameters_says_the_same_to_all():
    error = pickle.loads(pickle.dumps(TraceError("mode is 'x', expected direct")))
    assert str(error) == error.for_command_line() == "mode is 'x', expected direct"
    assert error.proposals == ()


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_a_limit_that_is_no_amount_is_refused(limit: float):
    with pytest.raises(TraceError, match="memory_limit is"):
        tracer.trace(replacement_model("llama"), PROMPT, memory_limit=limit)


def test_rows_are_dense_in_smaller_blocks_where_sources_are_many():
    assert blocks.block_rows(10_000, 4) == 512
    assert blocks.block_rows(160_000, 4) == 192
    assert blocks.block_rows(160_000, 8) == 64
    assert blocks.block_rows(10**7, 4) == 64


@pytest.mark.parametrize("floor", [0.01, 0.1])
def test_no_row_keeps_more_entries_than_one_over_the_floor(
    monkeypatch: pytest.MonkeyPatch, floor: float
):
    kept: list[int] = []
    keep = blocks.finished

    def watched(*given: Any) -> Any:
        run, sums = keep(*given)
        kept.extend(np.diff(run.effects.indptr).tolist())
        return run, sums

    monkeypatch.setattr(blocks, "finished", watched)
    tracer.trace(replacement_model("llama", kind="cross_layer"), PROMPT, edge_floor=floor)
    assert 1 < max(kept) <= 1 / floor


def test_what_an_edge_floor_drops_still_divides_what_is_left():
    frontier = Frontier.over(np.arange(2), columns=2)
    rows = [FlooredRun(sparse.csr_array(np.array([[1.0, 0.0], [0.0, 3.0]])))]
    own = np.array([6, 6]), np.array([-1, -1])
    frontier.add(rows, np.array([1.0, 10.0]), own, np.array([0.5, 0.5]))
    assert frontier.influence().tolist() == pytest.approx([0.5, 0.15])
    assert frontier.next(1).tolist() == [0]


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_free_memory_is_the_least_of_machine_and_groups(tmp_path: Path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    assert free_in_memory(proc, groups) is None
    write(proc, meminfo="MemTotal: 9000 kB\nMemAvailable:  8000 kB\n")
    assert free_in_memory(proc, groups) == 8000 * 1024
    write(proc / "self", cgroup="0::/box/inner\n")
    write(groups / "box" / "inner", **{"memory.max": "max\n", "memory.current": "5\n"})
    assert free_in_memory(proc, groups) == 8000 * 1024
    full = {"memory.max": "4000000\n", "memory.current": "3000000\n"}
    write(groups / "box", **full, **{"memory.stat": "anon 7\ninactive_file 500000\n"})
    assert free_in_memory(proc, groups) == 1_500_000
    write(proc / "self", cgroup="4:cpu,memory:/old\n1:name=x:/\n")
    old = {"memory.limit_in_bytes": "2000\n", "memory.usage_in_bytes": "1500\n"}
    write(groups / "memory" / "old", **old)
    assert free_in_memory(proc, groups) == 500


def test_a_gpu_gives_what_is_free_and_what_torch_holds_in_reserve(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 250)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert free_on(torch.device("cuda")) == 850


class CountingDecoder:
    """Decoder rows on loan from another decoder; writes down which were read."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.read = decoder, []
        self.shape = decoder.shape

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        self.read += features.tolist()
        return self.decoder.rows(features)

    def to(self, device: torch.device, dtype: torch.dtype) -> "CountingDecoder":
        return self


def counting(kind: str) -> Transcoder:
    """A random dictionary that counts what is read."""
    usual = transcoder(kind)
    layers: list[TranscoderLayer] = [
        replace(layer, decoder=CountingDecoder(layer.decoder)) for layer in usual.layers
    ]
    return type(usual)(layers, read=usual.read, write=usual.write)


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_every_active_decoder_row_is_read_once_and_no_other(kind: str):
    dictionary = counting(kind)
    model = ReplacementModel.from_huggingface(language_model("gpt2"), None, dictionary)
    recording = model.record(PROMPT)
    local = linearise(model, recording, 1)
    for layer, weights in enumerate(dictionary.layers):
        active = local.features.feature[local.features.layer == layer].unique()
        assert weights.decoder.read == active.tolist()
        assert 0 < len(active) < len(weights.W_enc)


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_what_is_held_of_the_decoders_is_what_active_features_write(kind: str):
    model = replacement_model("gpt2", kind=kind)
    local = linearise(model, model.record(PROMPT), 1)
    found, positions = local.features, local.positions
    for layer, writers in enumerate(local.writers):
        writing = sum(layer in model.transcoder.targets(source) for source in found.layer.tolist())
        assert len(writers.vectors) == writing + positions * writers.others


def test_long_patterns_are_neither_kept_nor_collected_by_the_model():
    model = replacement_model("llama")
    kept: list[torch.Size] = []
    run = model.host.model.forward

    def watched(*arguments: Any, **options: Any) -> Any:
        out = run(*arguments, **options)
        kept.extend(pattern.shape for pattern in out.attentions or ())
        return out

    model.host.model.forward = watched
    model.record(PROMPT, keep_patterns=False)
    assert all(shape[-1] == 0 for shape in kept)
    kept.clear()
    model.record(PROMPT)
    assert [shape[-1] for shape in kept] == [len(PROMPT)] * 3
