"""`.pt` graphs: read without running them; whatever else a pickle holds is refused."""

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from graphs import AttributionGraph, GraphError
from graphs.exchange.torch_zip import read_torch_zip


class LogitTarget(NamedTuple):
    token_str: str
    vocab_idx: int


class UnifiedConfig:
    def __init__(self, n_layers: int) -> None:
        self.n_layers, self.dtype, self.tokenizer_name = n_layers, torch.float32, "some/model"


@pytest.fixture(autouse=True)
def circuit_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names under which circuit-tracer's classes are pickled."""
    for path in ("circuit_tracer", "circuit_tracer.attribution", "circuit_tracer.utils"):
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    for path, kind in (
        ("circuit_tracer.attribution.targets", LogitTarget),
        ("circuit_tracer.utils.tl_nnsight_mapping", UnifiedConfig),
    ):
        module = ModuleType(path)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, path, module)
        monkeypatch.setattr(kind, "__module__", path)


def graph_dict(**change: Any) -> dict[str, Any]:
    """Two layers, two tokens, two features, two targets: 2 + 4 + 2 + 2 nodes."""
    matrix = torch.zeros(10, 10)
    matrix[0, 6], matrix[1, 0], matrix[1, 2], matrix[8, 1], matrix[9, 1] = 1, 2, 3, 4, -5
    return {
        "input_string": "a b",
        "adjacency_matrix": matrix,
        "cfg": UnifiedConfig(2),
        "active_features": torch.tensor([[0, 1, 7], [0, 1, 8], [1, 1, 9]]),
        "logit_targets": [LogitTarget(" Austin", 77), LogitTarget(" Dallas", 78)],
        "logit_probabilities": torch.tensor([0.7, 0.2]),
        "vocab_size": 100,
        "input_tokens": torch.tensor([5, 6]),
        "selected_features": torch.tensor([0, 2]),
        "activation_values": torch.tensor([1.5, 9.0, 2.5], dtype=torch.bfloat16),
        "scan": "org/repo",
    } | change


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_tokens_are_named_by_who_knows_them():
    graph, read = AttributionGraph.from_circuit_tracer_pt(saved(graph_dict()), "w{}".format)
    assert graph.metadata["tokens"] == ["w5", "w6"]
    assert graph.metadata["token_ids"] == [5, 6]
    texts = [text for text in graph.nodes["text"].to_pylist() if text]
    assert texts == ["w5", "w6", " Austin", " Dallas"]
    assert read.notes == []
    older = saved(graph_dict(logit_targets=torch.tensor([77, 78])))
    graph, _ = AttributionGraph.from_circuit_tracer_pt(older, "w{}".format)
    assert graph.nodes["text"].to_pylist()[-2:] == ["w77", "w78"]


@pytest.mark.parametrize("older", [False, True])
def test_a_graph_is_read(older: bool):
    change = {"logit_targets": torch.tensor([77, 78])} if older else {}
    graph, read = AttributionGraph.from_circuit_tracer_pt(saved(graph_dict(**change)))
    rows = graph.nodes.to_pylist()
    assert [row["id"] for row in rows] == [
        "E_5_0", "E_6_1", "0_7_1", "0_-1_0", "0_-1_1", "1_9_1", "1_-1_0", "1_-1_1", "3_77_1",
        "3_78_1",
    ]  # fmt: skip
    assert [row["layer"] for row in rows] == [-1, -1, 0, 0, 0, 1, 1, 1, 2, 2]
    assert [row["position"] for row in rows] == [0, 1, 1, 0, 1, 1, 0, 1, 1, 1]
    at = {row["id"]: number for number, row in enumerate(rows)}
    assert graph.effect[at["0_7_1"], at["E_5_0"]] == 1
    assert graph.effect[at["1_9_1"], at["0_7_1"]] == 2
    assert graph.effect[at["1_9_1"], at["0_-1_0"]] == 3
    assert graph.effect[at["3_78_1"], at["1_9_1"]] == -5
    assert [rows[at[name]]["activation"] for name in ("0_7_1", "1_9_1")] == [1.5, 2.5]
    assert rows[-2]["text"] == ("[77]" if older else " Austin")
    assert (graph.metadata["prompt"], graph.metadata["model"]) == ("a b", "some/model")
    assert "without text" in read.notes[0]


def test_tensors_of_every_kind_are_read():
    whole = torch.arange(12.0).reshape(3, 4)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    value = {
        "t": whole.T, "part": whole[1:, ::2], "empty": torch.zeros(0, 3),
        "ordered": OrderedDict(a=1),
        "kinds": [torch.tensor([0, 1, 2]).to(kind) for kind in kinds],
        "device": torch.device("cpu"),
        "plain": (1, -2.5, None, True, "é", [1 << 40], (1, 2, 3, 4)),
    }  # fmt: skip
    found = read_torch_zip(saved(value))
    assert np.array_equal(found["t"], whole.T.numpy())
    assert np.array_equal(found["part"], whole[1:, ::2].numpy())
    assert found["empty"].shape == (0, 3)
    assert [one.astype(float).tolist() for one in found["kinds"][:-1]] == [[0, 1, 2]] * 5
    assert found["kinds"][-1].tolist() == [False, True, True]
    assert found["plain"] == value["plain"]
    assert found["ordered"] == {"a": 1}


class Runs:
    """Would write a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def with_program(program: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return stream.getvalue()


def test_nothing_in_a_file_is_run(tmp_path: Path):
    mark = tmp_path / "ran"
    for value in (Runs(mark), {"cfg": Runs(mark)}, graph_dict(scan=Runs(mark))):
        with pytest.raises(GraphError, match=r"names 'posix\.system'") as caught:
            AttributionGraph.from_circuit_tracer_pt(saved(value))
        assert "\n" not in str(caught.value)
    for call in (eval, getattr, __import__, os.putenv):
        program = pickle.dumps(call)
        with pytest.raises(GraphError, match="nothing of it was run"):
            read_torch_zip(with_program(program))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no file of torch.save"),
        (b"\x80\x02}q\x00.", "no file of torch.save"),
        (with_program(b""), "torn"),
        (with_program(b"\x80\x02"), "torn"),
        (with_program(b"\x80\x02." ), "torn"),
        (with_program(b"\x80\x02}(K\x01u."), "torn"),
        (with_program(b"\x80\x02h\x07."), "torn"),
        (with_program(b"\x80\x02)R."), "torn"),
        (with_program(b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."), "torn"),
        (with_program(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."), "torn"),
        (with_program(b"\x80\x02]."), "expected a dict"),
        (with_program(b"\x80\x02}."), "expected a tensor adjacency_matrix"),
        (with_program(b"\x80\x02I01\n."), "uses INT, which is not followed"),
        (lambda: saved(graph_dict())[:-200], "no file of torch.save"),
        (lambda: saved(graph_dict(cfg=3)), "n_layers None"),
        (lambda: saved(graph_dict(adjacency_matrix=torch.zeros(9, 9))), r"shape \(9, 9\)"),
        (lambda: saved(graph_dict(adjacency_matrix=torch.full((10, 10), torch.nan))), "not finite"),
        (lambda: saved(graph_dict(selected_features=torch.tensor([0, 3]))), "selected_features"),
        (lambda: saved(graph_dict(logit_targets=[])), "expected logit_targets"),
        (lambda: saved(graph_dict(logit_probabilities=torch.tensor([0.7]))), "differ in length"),
        (lambda: saved(graph_dict(active_features=torch.zeros(3))), "a tensor active_features"),
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused_in_one_line(content: bytes | Callable[[], bytes], said: str):
    whole = content if isinstance(content, bytes) else content()
    with pytest.raises(GraphError, match=said) as caught:
        AttributionGraph.from_circuit_tracer_pt(whole)
    assert "\n" not in str(caught.value)


def test_a_storage_that_is_too_short_is_refused():
    whole = saved(graph_dict())
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            held = old.read(name)
            new.writestr(name, held[:-4] if name.endswith("/data/0") else held)
    with pytest.raises(GraphError, match="missing or torn"):
        AttributionGraph.from_circuit_tracer_pt(stream.getvalue())
