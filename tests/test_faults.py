"""Faults found by attack, each held by a test; README.md beside this file lists them."""

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import tracer
from graphs import AttributionGraph, GraphError
from graphs.described import LAYERS, misdescribed
from graphs.exchange import arrow, circuit_tracer_pt
from graphs.exchange.tables import WRITERS
from replacement_models import ModelError, ReplacementModel, load_transcoder
from replacement_models.formats.storage import members
from tests.graph_samples import random_graph, two_paths
from tests.peers_cross_layer import CrosslayerCoding
from tests.peers_per_layer import GemmaScope, SaeLens
from tracer.commands import main
from tracer.interrupts import stopped_once

GOLDEN = Path(__file__).parent / "data" / "golden" / "llama_gqa_clt"
SMALL = ["--model", str(GOLDEN / "model"), "--transcoders", str(GOLDEN / "transcoders")]
IDS = ["--tokens", "1,7,12,30,5", *SMALL]


@pytest.fixture(scope="module")
def golden() -> ReplacementModel:
    return ReplacementModel.load(GOLDEN / "model", GOLDEN / "transcoders")


@pytest.fixture(scope="module")
def traced(golden: ReplacementModel) -> AttributionGraph:
    return tracer.trace(golden, [1, 7, 12, 30, 5], max_features=20)


def flipped(content: bytes, count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(5)
    for place in rng.integers(0, len(content), count):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)


# Graphs: bytes


@pytest.mark.parametrize("name", [arrow.NODES, arrow.EDGES])
def test_every_turned_bit_of_a_graphs_tables_is_found(tmp_path: Path, name: str):
    random_graph(3).save(tmp_path / "g")
    path = tmp_path / "g" / name
    for content in flipped(path.read_bytes(), 100):
        path.write_bytes(content)
        with pytest.raises(GraphError):
            AttributionGraph.load(tmp_path / "g")


def test_a_label_changed_in_a_zip_packed_anew_is_found(tmp_path: Path):
    random_graph(3).save(tmp_path / "g.zip")
    with zipfile.ZipFile(tmp_path / "g.zip") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    assert b"Texas" in held[arrow.NODES]
    held[arrow.NODES] = held[arrow.NODES].replace(b"Texas", b"Xexas")
    with zipfile.ZipFile(tmp_path / "g.zip", "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    with pytest.raises(GraphError, match=r"is not as it was written .* copy or trace it again"):
        AttributionGraph.load(tmp_path / "g.zip")


def test_a_zip_with_a_name_that_is_no_text_is_refused(tmp_path: Path):
    random_graph(3).save(tmp_path / "g.zip")
    member = zipfile.ZipInfo("n\u00f6des.arrow")  # not ASCII, so the directory says UTF-8
    with zipfile.ZipFile(tmp_path / "g.zip", "a") as archive:
        archive.writestr(member, b"")
    content = (tmp_path / "g.zip").read_bytes()
    (tmp_path / "g.zip").write_bytes(content.replace("n\u00f6d".encode(), b"n\xadod"))
    with pytest.raises(GraphError, match=r"^cannot read .*g\.zip"):
        AttributionGraph.load(tmp_path / "g.zip")


@pytest.mark.parametrize("values", [[[1]], [{"a": 1}], [b"\xff"]], ids=["list", "struct", "bytes"])
def test_columns_that_no_export_can_hold_are_refused_as_they_are_loaded(
    tmp_path: Path, values: list[Any]
):
    graph = random_graph(3)
    graph.save(tmp_path / "g")
    odd = graph.nodes.append_column("odd", pa.array(values * graph.nodes.num_rows))
    rewritten(tmp_path / "g", odd, graph.edges, graph.metadata)
    with pytest.raises(GraphError, match="node column 'odd' has type"):
        AttributionGraph.load(tmp_path / "g")


def test_halves_of_two_graphs_with_the_same_metadata_are_found(tmp_path: Path):
    graph = random_graph(3)
    graph.save(tmp_path / "a")
    name = graph.nodes["id"][20].as_py()
    graph.relabel({name: "another"}).save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / arrow.NODES, tmp_path / "a" / arrow.NODES)
    with pytest.raises(GraphError, match="are of two graphs"):
        AttributionGraph.load(tmp_path / "a")


def rewritten(folder: Path, nodes: pa.Table, edges: pa.Table, said: dict[str, Any]) -> None:
    """Files of an earlier release: without a digest."""
    for name, table in ((arrow.NODES, nodes), (arrow.EDGES, edges)):
        held = table.replace_schema_metadata({arrow.KEY: json.dumps(said)})
        with pa.ipc.new_file(str(folder / name), held.schema) as writer:
            writer.write_table(held)


def test_without_a_digest_the_conservation_law_finds_a_changed_weight(
    tmp_path: Path, traced: AttributionGraph
):
    traced.save(tmp_path / "g")
    rewritten(tmp_path / "g", traced.nodes, traced.edges, traced.metadata)
    assert AttributionGraph.load(tmp_path / "g").nodes.equals(traced.nodes)
    at = traced.edges.column_names.index("weight")
    weight = traced.edges["weight"].to_numpy().copy()
    weight[np.abs(weight).argmax()] *= 0.5
    edges = traced.edges.set_column(at, "weight", pa.array(weight))
    rewritten(tmp_path / "g", traced.nodes, edges, traced.metadata)
    with pytest.raises(GraphError, match=r"node \d+ .* breaks the conservation law: .* add up to"):
        AttributionGraph.load(tmp_path / "g")


def test_what_pruning_leaves_keeps_the_law(tmp_path: Path, traced: AttributionGraph):
    traced.prune(0.5, 0.7).save(tmp_path / "g")
    AttributionGraph.load(tmp_path / "g")


def test_a_graph_edited_in_networkx_no_longer_claims_the_law(
    tmp_path: Path, traced: AttributionGraph
):
    graph = traced.to_networkx()
    assert "conservation" in AttributionGraph.from_networkx(graph).metadata
    source, target = max(graph.edges, key=lambda edge: abs(graph.edges[edge]["weight"]))
    graph.edges[source, target]["weight"] *= 0.5
    edited = AttributionGraph.from_networkx(graph)
    assert "conservation" not in edited.metadata
    edited.save(tmp_path / "g")
    AttributionGraph.load(tmp_path / "g")


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_table_is_read_unless_it_is_a_bomb(tmp_path: Path, compression: str):
    graph = random_graph(3)
    graph.save(tmp_path / "g")
    options = pa.ipc.IpcWriteOptions(compression=compression)
    said = {arrow.KEY: json.dumps(graph.metadata)}

    def write(name: str, table: pa.Table) -> None:
        held = table.replace_schema_metadata(said)
        with pa.ipc.new_file(str(tmp_path / "g" / name), held.schema, options=options) as writer:
            writer.write_table(held)

    write(arrow.NODES, graph.nodes)
    write(arrow.EDGES, graph.edges)
    assert AttributionGraph.load(tmp_path / "g").nodes.equals(graph.nodes)
    write(arrow.EDGES, pa.table({"weight": np.zeros(10_000_000)}))
    with pytest.raises(GraphError, match=r"edges.arrow unpacks to 80\d* bytes, more than 100"):
        AttributionGraph.load(tmp_path / "g")


# Graphs: metadata


@pytest.mark.parametrize(
    "said",
    [
        {"pruned": None},
        {"pruned": {}},
        {"pruned": {"nodes": 2, "edges": 0.5}},
        {"settings": None},
        {"settings": {"skip_positions": "one"}},
        {"tokens": None},
        {"tokens": [1]},
        {"validation": {}},
        {"validation": {"responses": 3}},
        {"conservation": {"worst": None, "relative": 0, "node": "x"}},
        {"layers": 10**30},
        {"layers": LAYERS + 1},
        {"floored_share": "much"},
        {"labels": [1]},
        {"labels": {"0/1": None}},
        {"prompt": None},
        {"prompt": "half \ud800 a character"},
        {"anything": ["\udfff"]},
        {"anything": 2**63},
    ],
)
def test_metadata_of_another_shape_is_refused_by_its_key(tmp_path: Path, said: dict[str, Any]):
    graph = two_paths()
    arrow.write(tmp_path / "g", graph.nodes, graph.edges, graph.metadata | said)
    with pytest.raises(GraphError, match=rf"metadata\['{next(iter(said))}'\]|metadata hold"):
        AttributionGraph.load(tmp_path / "g")


def test_metadata_of_every_trace_fit_the_schema(traced: AttributionGraph):
    assert misdescribed(traced.metadata) is None
    assert misdescribed(traced.prune().metadata) is None


@pytest.mark.parametrize("depth", [100, 100_000])
def test_metadata_nested_without_end_are_refused(tmp_path: Path, depth: int):
    graph = two_paths()
    graph.save(tmp_path / "g")
    said = '{"a": ' + "[" * depth + "]" * depth + "}"
    for name, table in ((arrow.NODES, graph.nodes), (arrow.EDGES, graph.edges)):
        held = table.replace_schema_metadata({arrow.KEY: said})
        with pa.ipc.new_file(str(tmp_path / "g" / name), held.schema) as writer:
            writer.write_table(held)
    with pytest.raises(GraphError, match=r"no JSON|within each other"):
        AttributionGraph.load(tmp_path / "g")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("layer", 2**31 - 1, f"stands at layer 2147483647, expected 0 to {LAYERS - 1}"),
        ("position", 2**31 - 1, "stands at position 2147483647, expected 0 to"),
        ("id", "a" * 201, "expected at most 200 letters"),
    ],
)
def test_places_and_names_without_end_are_refused(
    tmp_path: Path, column: str, value: object, message: str
):
    graph = two_paths()
    values = graph.nodes[column].to_pylist()
    values[1] = value
    at = graph.nodes.column_names.index(column)
    nodes = graph.nodes.set_column(at, column, pa.array(values, graph.nodes[column].type))
    arrow.write(tmp_path / "g", nodes, graph.edges, {})
    with pytest.raises(GraphError, match=message):
        AttributionGraph.load(tmp_path / "g")


def test_more_paths_than_memory_should_hold_are_refused():
    with pytest.raises(GraphError, match="count is 100000000, expected 1 to"):
        random_graph(3).paths(100_000_000)


# Graphs: text


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+1", "@SUM(1)", "-2", "\t=1", " =1", "\n"]
)
def test_no_cell_of_a_csv_is_a_formula(text: str):
    graph = two_paths().relabel({"feature1": text})
    content = WRITERS[".csv"](graph.nodes, graph.edges, {}).decode()
    assert f'"\'{text}"' in content
    plain = two_paths()
    assert "'" not in WRITERS[".csv"](plain.nodes, plain.edges, {}).decode()


def test_a_token_of_20_000_characters_can_be_drawn(tmp_path: Path):
    graph = two_paths()
    long = "\U000e0100" * 20_000
    metadata = graph.metadata | {"tokens": [long], "prompt": long}
    texts = pa.array([long, None, long])
    at = graph.nodes.column_names.index("text")
    nodes = graph.nodes.set_column(at, "text", texts)
    graph = AttributionGraph(nodes=nodes, effect=graph.effect, metadata=metadata)
    assert max(map(len, graph.to_dot().split('"'))) < 16_000
    if shutil.which("dot"):
        graph.render(tmp_path / "g.svg")


# Dictionaries and models


def spoiled(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].reshape(-1)[1] = value
    save_file(tensors, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("stem", ["W_enc_1", "W_dec_1"])
def test_a_dictionary_with_a_weight_that_is_no_number_is_refused_by_file_and_tensor(
    tmp_path: Path, stem: str, value: float
):
    folder = Path(shutil.copytree(GOLDEN / "transcoders", tmp_path / "set"))
    path = folder / f"{stem}.safetensors"
    for name in load_file(path):
        shutil.copy(GOLDEN / "transcoders" / path.name, path)
        spoiled(path, name, value)
        with pytest.raises(ModelError, match=rf"{stem}.safetensors: {name}.* expected finite"):
            load_transcoder(folder)


def test_a_lazy_decoder_is_refused_where_its_rows_are_read(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "transcoders", tmp_path / "set"))
    path = folder / "W_dec_0.safetensors"
    tensors = {name: torch.full_like(one, torch.nan) for name, one in load_file(path).items()}
    save_file(tensors, path)
    model = ReplacementModel.load(GOLDEN / "model", folder, lazy=True)
    with pytest.raises(ModelError, match=r"W_dec_0.safetensors: .*rows read.* expected finite"):
        tracer.trace(model, [1, 7, 12, 30, 5])


def test_numbers_that_are_none_in_an_npz_are_refused(tmp_path: Path):
    peer = GemmaScope()
    peer.save(tmp_path)
    path = next(tmp_path.rglob("params.npz"))
    arrays = dict(np.load(path))
    arrays["threshold"][0] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(ModelError, match=r"params.npz: threshold holds nan"):
        load_transcoder(tmp_path)


def test_a_model_with_a_weight_that_is_no_number_is_refused_by_file_and_tensor(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "model", tmp_path / "model"))
    name = sorted(load_file(folder / "model.safetensors"))[3]
    spoiled(folder / "model.safetensors", name, float("nan"))
    with pytest.raises(ModelError, match=rf"model.safetensors: {name} holds nan at \["):
        ReplacementModel.load(folder, GOLDEN / "transcoders")


def test_no_index_leads_out_of_a_models_folder(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "model", tmp_path / "model"))
    said = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"weight_map names .*elsewhere.* files in this folder"):
        ReplacementModel.load(folder, GOLDEN / "transcoders")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_configurations_nested_or_counted_without_end_are_refused(tmp_path: Path, content: str):
    SaeLens().save(tmp_path)
    for path in tmp_path.rglob("cfg.json"):
        path.write_text(content)
    with pytest.raises(ModelError):
        load_transcoder(tmp_path)
    folder = Path(shutil.copytree(GOLDEN / "transcoders", tmp_path / "yaml"))
    (folder / "config.yaml").write_text(content)
    with pytest.raises(ModelError):
        load_transcoder(folder)


def test_a_field_that_is_an_object_is_refused(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "transcoders", tmp_path / "set"))
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text() + "\nfeature_input_hook: {a: 1}\n"
    )
    with pytest.raises(ModelError, match=r"feature_input_hook is \{'a': 1\}"):
        load_transcoder(folder)


def test_a_folder_of_too_many_folders_is_not_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(members, "FOLDERS", 3)
    for name in "abcde":
        (tmp_path / name).mkdir()
    with pytest.raises(ModelError, match="more than 3 folders in it"):
        load_transcoder(tmp_path)


# Commands


@pytest.mark.parametrize(
    "line",
    [
        ["trace", *IDS, "--target", "\udcff"],
        ["trace", "--tokens", "1", "--model", "~nosuchuser/x", "--transcoders", "neurons"],
        *(["trace", *IDS, "--device", name] for name in ("meta", "hpu", "privateuseone")),
        ["trace", *IDS, "--skip-positions", str(2**64)],
        ["generate", *IDS, "--seed", str(2**65)],
        ["generate", *IDS, "--temperature", "1e-320"],
        ["intervene", *IDS, "--add", "0/1/1=1e308"],
        ["validate", "g", *SMALL, "--draws", str(10**30)],
        ["show", "g", "--paths", str(2**64)],
        ["show", "g", "--paths", "100000000"],
        ["validate", "g", *SMALL, "--corpus", "latin.txt"],
    ],
)
def test_a_command_line_is_refused_in_one_line(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: AttributionGraph
):
    monkeypatch.chdir(tmp_path)
    traced.save("g")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    before = sorted(Path().iterdir())
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_pruning_over_a_corrupt_zip_is_no_traceback(tmp_path: Path, traced: AttributionGraph):
    traced.save(tmp_path / "g")
    for content in (b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(60), b"", b"x" * 100):
        (tmp_path / "g.zip").write_bytes(content)
        line = ["prune", str(tmp_path / "g"), "-o", str(tmp_path / "g.zip")]
        assert CliRunner().invoke(main, line).exit_code == 2
        assert (tmp_path / "g.zip").read_bytes() == content


# Signals


def test_a_second_signal_waits_for_what_the_first_one_keeps():
    done = []
    with stopped_once() as stopping:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("not stopped")
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("saved")
    assert done == ["saved"]
    assert stopping.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_does_not_give_up_ends_it_at_last():
    interrupted = 0
    with stopped_once():
        for _ in range(5):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                interrupted += 1
    assert interrupted == 2


@pytest.mark.parametrize(("first", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_trace_stopped_twice_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, code: int
):
    whole, save = tracer.trace, AttributionGraph.save

    def stop(done: int, total: int) -> None:
        if done:
            os.kill(os.getpid(), first)

    def saved(graph: AttributionGraph, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(graph, *arguments)

    monkeypatch.setattr(tracer, "trace", lambda *a, **b: whole(*a, **b | {"progress": stop}))
    monkeypatch.setattr(AttributionGraph, "save", saved)
    line = ["trace", *IDS, "--max-features", "20", "--rank-every", "5", "-o", str(tmp_path / "g")]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == code
    assert AttributionGraph.load(tmp_path / "g.partial").metadata["partial"]


def test_sigterm_leaves_nothing_of_a_command_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: AttributionGraph
):
    traced.save(tmp_path / "g")
    write = Path.write_bytes

    def killed(path: Path, content: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", killed)
    line = ["prune", str(tmp_path / "g"), "-o", str(tmp_path / "small")]
    result = CliRunner().invoke(main, line)
    assert (result.exit_code, result.stderr) == (143, "Error: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


@pytest.mark.parametrize("width", [1e308, 5, "4"])
def test_a_width_that_is_not_the_weights_own_is_refused(tmp_path: Path, width: Any):
    CrosslayerCoding(method="sqrt_d_model").save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"d_model": width}))
    with pytest.raises(ModelError, match=r"cfg\.json: d_model is .*, expected \d+, its encoders'"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("field", ["input_string", "scan"])
def test_texts_of_an_imported_graph_that_are_none_are_left_out(field: str):
    held = {"input_string": "a", "scan": ["b", "c"]} | {field: np.zeros(3)}
    assert circuit_tracer_pt._text(held[field]) == ""
    assert circuit_tracer_pt._text(["b", "c"]) == "b, c"
