"""`tracer export --to` and `tracer import`."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pyarrow.parquet as pq
import pytest
import torch

from graphs import AttributionGraph
from tests.graph_samples import dallas, random_graph
from tests.test_cli import present, refused, run, succeed
from tracer import FeatureStore
from tracer.features.packaged import EMBEDDED

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = dallas()
    ids = [row["id"] for row in graph.nodes.to_pylist() if row["kind"] == "feature"]
    graph.group("say a capital", ids[:2]).save("d.graph", pins=[*ids[1:3], ids[0]])


@pytest.mark.parametrize("place", ["back.graph", "back.zip"])
@pytest.mark.parametrize(
    "to", [["circuit-tracer"], ["self-hosted"], ["neuronpedia", "--source-set", "s"]]
)
def test_a_graph_goes_out_and_comes_back(to: list[str], place: str):
    succeed("export", "d.graph", "-o", "out.json", "--to", *to)
    text = succeed("import", "out.json", "-o", place)
    before, after = AttributionGraph.load("d.graph").prune(), AttributionGraph.load(place)
    assert after.nodes.equals(before.nodes)
    assert after.edges.equals(before.edges)
    assert after.groups == before.groups
    assert f"{after.nodes.num_rows} nodes, {after.effect.nnz} edges" in text
    pins = json.loads(Path("d.graph/view.json").read_text("utf-8"))["view"]["pins"]
    succeed("export", place, "-o", "again.json", "--to", *to)
    again = json.loads(Path("again.json").read_text("utf-8"))
    assert again["qParams"]["pinnedIds"] == [p for p in pins if p in after.nodes["id"].to_pylist()]


def test_circuit_tracers_server_finds_the_file():
    text = succeed("export", "d.graph", "-o", "dallas.json", "--to", "circuit-tracer")
    address = parse_qs(text[text.index("?") + 1 :].strip())  # the page takes it apart once more
    assert json.loads(unquote(address["supernodes"][0])) == [
        [one.name, *one.members] for one in AttributionGraph.load("d.graph").prune().groups
    ]
    pinned = address["pinnedIds"][0].split(",")
    groups = AttributionGraph.load("d.graph").prune().groups
    assert {member for one in groups for member in one.members} <= set(pinned)
    succeed("export", "d.graph", "-o", "other.json", "--to", "circuit-tracer")
    succeed("export", "d.graph", "-o", "other.json", "--to", "circuit-tracer")
    listed = json.loads(Path("graph-metadata.json").read_text("utf-8"))["graphs"]
    assert [one["slug"] for one in listed] == ["dallas", "other"]
    Path("graph-metadata.json").write_text("[]")
    line = refused("export", "d.graph", "-o", "third.json", "--to", "circuit-tracer")
    assert "no list of graphs" in line
    assert "third.json" not in present()


def test_circuit_tracers_page_is_sent_to_its_own_server_unless_told_otherwise():
    def scan(*options: str) -> str:
        succeed("export", "d.graph", "-o", "x.json", "--to", "circuit-tracer", *options)
        found: str = json.loads(Path("x.json").read_text("utf-8"))["metadata"]["scan"]
        return found

    assert scan() == "/local"
    assert scan("--scan", "org/repo") == "org/repo"
    listed = json.loads(Path("graph-metadata.json").read_text("utf-8"))["graphs"]
    assert [one["scan"] for one in listed] == ["org/repo"]


def test_what_shows_features_in_circuit_tracers_page_is_said():
    text = succeed("export", "d.graph", "-o", "x.json", "--to", "circuit-tracer")
    assert "tracer features export STORE -o features --to circuit-tracer (STORE: " in text
    assert "start-server --graph_file_dir . --features_dir features\n" in text
    Path("features").mkdir()
    Path("features/index.json.gz").touch()
    text = succeed("export", "d.graph", "-o", "x.json", "--to", "circuit-tracer")
    assert "features export" not in text
    options = ["--to", "circuit-tracer", "--scan", "org/repo"]
    text = succeed("export", "d.graph", "-o", "x.json", *options)
    assert "start-server --graph_file_dir .\n" in text
    assert "features" not in text
    AttributionGraph.load("d.graph").save("e.graph")
    graph = AttributionGraph.load("e.graph")
    store = FeatureStore.load(EMBEDDED / "clt.features")
    about = {"transcoders": "embedded/clt", "dictionary_hash": store.about["dictionary_hash"]}
    replace(graph, metadata=graph.metadata | about).save("e.graph")
    Path("my files").mkdir()
    text = succeed("export", "e.graph", "-o", "my files/x.json", "--to", "circuit-tracer")
    command = next(line for line in text.splitlines() if "features export" in line)
    words = shlex.split(command.partition(": tracer ")[2])
    assert words == ["features", "export", str(store.path), "-o", "my files/features-embedded-clt",
                     "--to", "circuit-tracer"]  # fmt: skip
    assert "--graph_file_dir 'my files' --features_dir 'my files/features-embedded-clt'" in text


def test_self_hosted_features_without_an_address_are_said_to_be_missing():
    text = run("export", "d.graph", "-o", "x.json", "--to", "self-hosted").stderr
    assert "will show no examples" in text
    assert "--feature-url" in text
    options = ["--to", "self-hosted", "--feature-url", "https://x.org/f"]
    assert "no examples" not in run("export", "d.graph", "-o", "x.json", *options).stderr


def test_front_ends_show_every_node_kept_and_one_target():
    succeed("export", "d.graph", "-o", "x.json", "--to", "circuit-tracer", "--nodes", "0.5")
    value = json.loads(Path("x.json").read_text("utf-8"))
    threshold = value["metadata"]["node_threshold"]
    kinds = ("logit", "embedding")
    kept = [node["influence"] for node in value["nodes"] if node["feature_type"] not in kinds]
    assert max(kept) <= threshold
    assert value["metadata"]["pruning_settings"]["node_threshold"] == 0.5
    targets = [node["is_target_logit"] for node in value["nodes"]
               if node["feature_type"] == "logit"]  # fmt: skip
    assert targets == [True] + [False] * (len(targets) - 1)
    assert sum(node["is_target_logit"] for node in value["nodes"]) == 1


def test_pruning_keeps_the_pins_of_what_is_left():
    succeed("prune", "d.graph", "-o", "small.graph", "--nodes", "0.6")
    pins = [json.loads(Path(name, "view.json").read_text("utf-8"))["view"]["pins"]
            for name in ("d.graph", "small.graph")]  # fmt: skip
    left = AttributionGraph.load("small.graph").nodes["id"].to_pylist()
    assert pins[1] == [one for one in pins[0] if one in left] != []
    assert pins[1] != pins[0]


@pytest.mark.parametrize(
    "command",
    [
        ["export", "d.graph", "-o", f"none/x{suffix}"]
        for suffix in (".json", ".html", ".graphml", ".csv", ".parquet")
    ]
    + [
        ["export", "d.graph", "-o", "none/x.json", "--to", "circuit-tracer"],
        ["render", "d.graph", "-o", "none/x.dot"],
        ["render", "d.graph", "-o", "none/x.svg"],
        ["prune", "d.graph", "-o", "none/x.graph"],
        ["prune", "d.graph", "-o", "none/x.zip"],
        ["compare", "d.graph", "d.graph", "-o", "none/x.svg"],
    ],
    ids=lambda command: " ".join(command),
)
def test_a_missing_folder_is_refused_in_the_same_line_everywhere(command: list[str]):
    line = refused(*command)
    assert f"cannot write {command[command.index('-o') + 1]}: there is no folder " in line
    assert "make it first" in line
    assert present() == ["d.graph"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "x.json", "--to", "neuronpedia"], "--source-set"),
        (["-o", "x y.json", "--to", "circuit-tracer"], "as in x-y.json"),
        (["-o", "x.csv", "--to", "neuronpedia", "--source-set", "s"], "writes .json"),
        (["-o", "x.json", "--scan", "gemma"], "go with --to"),
        (["-o", "x.json", "--to", "self-hosted", "--feature-url", "ftp://x"], "expected https"),
    ],
)
def test_a_mistake_in_an_export_is_one_line(arguments: list[str], said: str):
    assert said in refused("export", "d.graph", *arguments)
    assert present() == ["d.graph"]


def test_what_cannot_be_imported_is_one_line_and_leaves_nothing():
    Path("x.json").write_text("{}")
    Path("x.txt").write_text("{}")
    torch.save({"a": torch.zeros(2)}, "x.pt")
    before = present()
    assert "x.json: no attribution graph" in refused("import", "x.json", "-o", "new.graph")
    assert "x.pt: no graph of circuit-tracer" in refused("import", "x.pt", "-o", "new.graph")
    assert "expected a .json or .pt" in refused("import", "x.txt", "-o", "new.graph")
    assert "No such file" in refused("import", "none.json", "-o", "new.graph")
    assert present() == before


def test_edges_as_parquet_and_groups_in_graphml():
    succeed("export", "d.graph", "-o", "d.parquet")
    table = pq.read_table("d.parquet")
    small = AttributionGraph.load("d.graph").prune()
    assert table.num_rows == small.effect.nnz
    assert table.column_names[:3] == ["source", "target", "weight"]
    assert json.loads(table.schema.metadata[b"tracer.graph"])["prompt"] == small.metadata["prompt"]
    succeed("export", "d.graph", "-o", "d.graphml")
    assert ("say a capital" in Path("d.graphml").read_text("utf-8")) == bool(small.groups)


def test_groups_of_a_graph_replaced_by_an_import_do_not_stay():
    random_graph(1).save("r.graph")
    succeed("export", "r.graph", "-o", "r.json", "--to", "circuit-tracer")
    shutil.copytree("d.graph", "t.graph")
    succeed("import", "r.json", "-o", "t.graph")
    assert AttributionGraph.load("t.graph").groups == ()


def test_a_file_of_circuit_tracer_itself_is_read_and_named_by_the_models_tokenizer():
    file, model = DATA / "circuit_tracer.pt", DATA / "golden" / "gpt2_plt" / "model"
    succeed("import", str(file), "-o", "a.graph", "--model", str(model))
    graph = AttributionGraph.load("a.graph")
    assert graph.metadata["token_ids"] == [1, 7, 12, 30, 5, 22, 9]
    assert graph.metadata["tokens"][1:4] == ["w7", "w12", "w30"]
    kinds = graph.nodes["kind"].to_pylist()
    assert [kinds.count(kind) for kind in ("embedding", "error", "feature", "logit")] == [
        7, 21, 24, 8,
    ]  # fmt: skip
    assert graph.nodes["text"].to_pylist()[-8:-5] == ["20", "29", "5"]  # as the file says
    assert "has no tokenizer" in refused("import", str(file), "-o", "b.graph", "--model", ".")
    text = str(DATA / "feature-details-schema.json")
    assert "omit it" in refused("import", text, "-o", "b.graph", "--model", str(model))
