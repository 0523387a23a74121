"""Monitoring: what crossed is what the recording that traces use says, on any stream of lines."""

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracer
from replacement_models.sites import Site
from tests.random_models import VOCABULARY
from tests.test_cli import GOLDEN, SMALL, refused, run
from tests.test_tracer_features_build import MODELS, SETTINGS, SPECIAL, texts
from tracer import Directions, FeatureStore, ReplacementModel, TraceError, Watch
from tracer.monitoring import lines
from tracer.monitoring.readings import read

ROOT = Path(__file__).parents[1]


def plain(model: ReplacementModel, ids: list[int], watch: Watch) -> np.ndarray:
    """One number a token, -inf where it does not count."""
    recording = model.record(ids)
    if watch.vector is not None and watch.site is not None:
        values = (recording.stream(watch.site) @ watch.vector.to(model.dtype)).numpy()
    else:
        values = sum(
            model.transcoder.encode(layer, recording.inputs[layer])[1][:, feature].numpy()
            for layer, feature in watch.features
        )
    fit = [at > 0 and token not in SPECIAL for at, token in enumerate(ids)]
    return np.where(fit, values, -np.inf)


def graph_with_groups(path: Path) -> Path:
    path.mkdir()
    groups = [
        {"name": "two", "members": ["0_3_5", "2_4_1", "0_3_6", "E_7_1"], "place": None},
        {"name": "words", "members": ["E_7_1"], "place": [0, 1]},
    ]
    (path / "groups.json").write_text(json.dumps({"format": 1, "groups": groups}))
    return path


def watches_of(model: ReplacementModel, path: Path) -> list[Watch]:
    width = model.host.d_model
    vectors = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
    sites = [site for site in model.host.stream_sites if site.layer in (1, 2, 3)]
    found = [Watch.feature(0, 1, 0.2), Watch.feature(2, 5), Watch.group(path, "two", 0.3)]
    return found + [
        Watch.direction(Directions(vectors, (str(site),), site, {}), 0.1) for site in sites
    ]


@pytest.mark.parametrize("name", ["cross_layer", "topk", "residual", "neurons", "some_layers"])
def test_what_crosses_is_what_a_recording_says(name: str, tmp_path: Path):
    model = MODELS[name]()
    watches = watches_of(model, graph_with_groups(tmp_path / "g"))
    found = tracer.monitor(model, iter(texts()), watches, batch=7, context=16)
    assert inspect.isgenerator(found)
    for number, (ids, one) in enumerate(zip(texts(), found, strict=True)):
        assert (one.number, one.tokens) == (number, len(ids))
        crossed = {crossing.name: crossing for crossing in one.crossings}
        for watch in watches:
            pieces = [plain(model, ids[at : at + 16], watch) for at in range(0, len(ids), 16)]
            values = np.concatenate(pieces)
            at = np.flatnonzero(values > watch.threshold)
            if not len(at):
                assert watch.name not in crossed
                continue
            crossing = crossed.pop(watch.name)
            assert crossing.positions == tuple(at)
            # Llama's norms are computed in float32, in another order where there are more rows.
            assert crossing.values == pytest.approx(values[at], rel=1e-4, abs=1e-5)
            assert crossing.maximum == max(crossing.values)
            assert crossing.tokens == tuple(model.token_string(ids[place]) for place in at)
        assert crossed == {}


def test_nothing_above_what_is_watched_is_run_and_no_hook_is_left():
    model = MODELS["topk"]()
    ran: list[int] = []
    handles = [
        block.attention.register_forward_hook(lambda *_, at=at: ran.append(at))
        for at, block in enumerate(model.host.blocks)
    ]
    before = [len(module._forward_hooks) for module in model.host.model.modules()]
    assert len([*tracer.monitor(model, texts(3), [Watch.feature(0, 1)])]) == 3
    assert {*ran} == {0}
    assert before == [len(module._forward_hooks) for module in model.host.model.modules()]
    for handle in handles:
        handle.remove()


def test_texts_are_read_as_they_are_needed_and_memory_stays_what_it_was():
    model, taken = MODELS["topk"](), 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield [3 + taken % 20, 5, 7, 9]

    found = tracer.monitor(model, endless(), [Watch.feature(0, 1)], batch=8)
    for _ in range(100):
        next(found)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(3000):
        next(found)
    assert tracemalloc.get_traced_memory()[0] - before < 200_000
    tracemalloc.stop()
    assert taken <= 3100 + 8


@pytest.mark.parametrize(
    ("watches", "said"),
    [
        ([], "nothing is watched"),
        ([Watch.feature(9, 1)], "layer 9 has no features"),
        ([Watch.feature(0, 999)], "feature 999 is not in layer 0"),
        ([Watch.feature(0, 1), Watch.feature(0, 1, 2)], "'0/1' is watched twice"),
        ([Watch.feature(0, 1, float("nan"))], "threshold nan is no finite number"),
        (
            [Watch("d", 0, vector=torch.ones(3), site=Site.parse("resid_pre.1"))],
            "directions of width 3 do not fit",
        ),
        (
            [Watch("d", 0, vector=torch.ones(16), site=Site.parse("resid_pre.9"))],
            "cannot be read at resid_pre.9",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused_before_a_text_is_read(watches: list[Watch], said: str):
    def unread() -> Iterator[list[int]]:
        raise AssertionError("a text was read")
        yield []

    with pytest.raises(TraceError, match=said):
        tracer.monitor(MODELS["topk"](), unread(), watches)


def test_groups_that_are_not_there_are_refused(tmp_path: Path):
    graph = graph_with_groups(tmp_path / "g")
    assert Watch.group(graph, "two").features == ((0, 3), (2, 4))
    for name, said in (("three", "it has 'two', 'words'"), ("words", "holds no feature")):
        with pytest.raises(TraceError, match=said):
            Watch.group(graph, name)
    (graph / "groups.json").write_text("{")
    with pytest.raises(TraceError, match="cannot be read"):
        Watch.group(graph, "two")
    with pytest.raises(TraceError, match="no such graph"):
        Watch.group(tmp_path / "none", "two")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match="holds no groups"):
        Watch.group(tmp_path / "empty", "two")


def test_a_group_is_read_from_a_zip_too(tmp_path: Path):
    import zipfile

    graph = graph_with_groups(tmp_path / "g")
    with zipfile.ZipFile(tmp_path / "g.zip", "w") as archive:
        archive.write(graph / "groups.json", "groups.json")
    assert Watch.group(tmp_path / "g.zip", "two").features == Watch.group(graph, "two").features


def told_of(content: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[str]]:
    monkeypatch.setattr(lines, "LONGEST_LINE", 64)
    told: list[str] = []
    found = [*lines.texts(io.BytesIO(content), "text", VOCABULARY, told.append)]
    return [(one.number, one.text, one.id) for one in found], told


def test_broken_lines_are_told_and_left_out(monkeypatch: pytest.MonkeyPatch):
    broken = [
        (b'{"text": 5}', "expected text or token ids in 'text', got 5"),
        (b"not json", "no JSON"),
        (b'{"text": "a\xff"}', "no JSON in UTF-8"),
        (b"[" * 60, "no JSON"),
        (b'{"txet": "a"}', "got None"),
        (b'{"text": "\\ud800"}', "not valid Unicode"),
        (b'{"text": " "}', "the text is empty"),
        (b"[1, 99999]", f"token id 99999 is not in 0..{VOCABULARY - 1}"),
        (b"[true]", "expected text or token ids"),
        (b"x" * 200, "longer than 64 bytes"),
        (b"null", "expected text or token ids"),
    ]
    content = b"\n".join([*(line for line, _ in broken), b"", b'{"text": "ok", "id": 7}', b"[3]"])
    found, told = told_of(content, monkeypatch)
    assert found == [(len(broken) + 2, "ok", 7), (len(broken) + 3, [3], None)]
    assert len(told) == len(broken)
    for number, ((_, said), got) in enumerate(zip(broken, told, strict=True), start=1):
        assert got.startswith(f"line {number}: ")
        assert said in got
        assert got.endswith("left out")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    model = ReplacementModel.load(GOLDEN / "model", GOLDEN / "transcoders")
    FeatureStore.build(model, texts(), folder / "s", **{**SETTINGS, "context": 8})
    return folder / "s"


def test_a_json_line_a_text_from_a_file(built: Path, tmp_path: Path):
    file = tmp_path / "texts.jsonl"
    ids = [[3 + (k * i) % 30 for i in range(6)] for k in range(1, 8)]
    content = [json.dumps({"text": one, "id": f"n{at}"}) for at, one in enumerate(ids)]
    file.write_text("\n".join([*content[:3], "broken", *content[3:]]), encoding="utf-8")
    result = run("monitor", str(built), str(file), "--features", "0/1:0.01,1/2:10%", *SMALL)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["id"] for one in found] == [f"n{at}" for at in range(7)]
    assert [one["line"] for one in found] == [1, 2, 3, 5, 6, 7, 8]
    store = FeatureStore.load(built)
    model = ReplacementModel.load(GOLDEN / "model", GOLDEN / "transcoders")
    watches = [Watch.named("0/1:0.01", store), Watch.named("1/2:10%", store)]
    assert watches[1].threshold == pytest.approx(store[1, 2].maximum / 10)
    for one, expected in zip(found, tracer.monitor(model, ids, watches), strict=True):
        assert one["tokens"] == expected.tokens
        assert [x["name"] for x in one["crossed"]] == [x.name for x in expected.crossings]
        for said, crossing in zip(one["crossed"], expected.crossings, strict=True):
            assert said["label"]
            assert [at for at, *_ in said["at"]] == [*crossing.positions]
            assert said["maximum"] == pytest.approx(crossing.maximum, rel=1e-5)
    assert "line 4: no JSON" in result.stderr
    assert "7 texts, 42 tokens in" in result.stderr
    assert "1 lines left out" in result.stderr


def test_the_command_reads_standard_input_and_directions(built: Path, tmp_path: Path):
    width = ReplacementModel.load(GOLDEN / "model", GOLDEN / "transcoders").host.d_model
    vectors = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
    saved = tmp_path / "d.safetensors"
    Directions(vectors, ("north",), Site.parse("resid_pre.1"), {}).save(saved)
    from click.testing import CliRunner

    from tracer.commands import main

    graph = graph_with_groups(tmp_path / "g")
    flags = ("--direction", f"{saved}=-1000", "--group", f"{graph}:two=-1")
    result = CliRunner().invoke(
        main, ["monitor", str(built), *flags, *SMALL], input="[3, 4, 5, 6]\n"
    )
    assert result.exit_code == 0, result.output
    [said] = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [(one["kind"], one["name"], len(one["at"])) for one in said["crossed"]]
    assert kinds == [("group", "two", 3), ("direction", "north", 3)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "x"], "none: holds no feature store"),
        (["STORE", "x"], "nothing to watch"),
        (["STORE", "x", "--features", "0/1"], "x: no such file"),
        (["STORE", "x", "--features", "0"], "'0' is not L/F:THRESHOLD"),
        (["STORE", "x", "--features", "0/1:many"], "is not L/F:THRESHOLD"),
        (["STORE", "x", "--features", "0/9999"], "feature 9999 is not in layer 0"),
        (["STORE", "x", "--group", "g"], "'g' is not NAME=THRESHOLD"),
        (["STORE", "x", "--group", "g=1"], "'g' is not GRAPH:NAME"),
        (["STORE", "x", "--group", "g:n=1"], "g: no such graph"),
        (["STORE", "x", "--direction", "none.safetensors=1"], "no such file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    given = [str(built) if one == "STORE" else one for one in arguments]
    assert said in refused("monitor", *given, *SMALL)


def test_another_dictionarys_store_is_refused(built: Path, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text("[3, 4]\n")
    said = refused("monitor", str(built), str(tmp_path / "x.jsonl"), "--features", "0/1")
    assert "belongs to the dictionary" in said


def test_control_c_ends_it_with_whole_lines_and_what_it_did(built: Path):
    command = [sys.executable, "-m", "tracer", "monitor", str(built), "--features", "0/1:0"]
    process = subprocess.Popen(
        [*command, "--batch", "1", *SMALL],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"[3, 4, 5]\n[6, 7, 8]\n")
    process.stdin.flush()
    got = [json.loads(process.stdout.readline()) for _ in range(2)]
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    assert [one["line"] for one in got] == [1, 2]
    assert rest == b""
    assert process.returncode == 130
    assert b"2 texts, 6 tokens in" in said
    assert b"Traceback" not in said


def test_gradients_are_those_of_what_is_read():
    model = MODELS["neurons"]()
    rows = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    found = read(model, rows, [Watch.feature(1, 2)], 1, gradients=True)
    assert found.embedded is not None
    [slope] = torch.autograd.grad(found.values[0, 0, 3], found.embedded)
    assert slope[0].abs().sum() > 0
    assert slope[1].abs().sum() == 0
