"""Stores with labels, users' own labels, labels from an endpoint, and graphs that show them."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import tracer
from replacement_models import ModelError, ReplacementModel
from tests.planted import reading_model
from tests.random_models import replacement_model
from tests.test_cli import refused, succeed
from tracer import FeatureStore, TraceError
from tracer.features.beside import store_of
from tracer.features.labels import run
from tracer.features.labels.endpoint import Endpoint, SpentError
from tracer.features.labels.on_nodes import Classes, Prompt, in_prompt
from tracer.features.labels.own import FILE as OWN
from tracer.features.labels.table import FILE, Labels
from tracer.features.promoted import promoted_tokens, written_by

PLANTED = [(5,), (7, 8), (10, 11, 12), (20,)]
PROMOTED = [13, 14, 15, 16]


def texts(seed: int = 0, count: int = 80) -> list[list[int]]:
    drawn = np.random.default_rng(seed)
    return [drawn.integers(1, 32, 15).tolist() for _ in range(count)]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return reading_model(PLANTED, PROMOTED)


@pytest.fixture
def store(model: ReplacementModel, tmp_path: Path) -> FeatureStore:
    options = {"context": 16, "window": 16, "alone": True, "tokens": 3}
    return FeatureStore.build(model, texts(), tmp_path / "planted.features", **options)


@pytest.fixture
def labelled(model: ReplacementModel, store: FeatureStore) -> FeatureStore:
    store.label(model, texts(1, 200), outside=texts(2, 40))
    return store


def test_statistics_and_labels_recover_what_was_planted(
    model: ReplacementModel, labelled: FeatureStore
):
    tokens = np.array(texts())  # the first position holds BOS, which no one counts
    for feature, (planted, promoted) in enumerate(zip(PLANTED, PROMOTED, strict=True)):
        known = labelled[0, feature]
        share = np.isin(tokens, planted).mean()
        assert known.density == pytest.approx(share, abs=1e-12)
        assert known.mean == pytest.approx(known.maximum, rel=1e-6)  # one strength everywhere
        assert {int(text) for text in known.fires_on} == {*planted}
        assert known.promoted[0] == str(promoted)
        assert (known.f1, known.precision, known.recall, known.shown) == (1, 1, 1, True)
        assert known.outside_f1 == 1
        assert {*known.label.removeprefix("on ").replace(" or ", ", ").split(", ")} == {
            f"“{token}”" for token in planted
        }


def test_labelling_again_gives_the_same_bytes(model: ReplacementModel, labelled: FeatureStore):
    before = (labelled.path / FILE).read_bytes()
    labelled.label(model, texts(1, 200), outside=texts(2, 40))
    assert (labelled.path / FILE).read_bytes() == before
    about = Labels.read(labelled.path).about
    assert about["dictionary_hash"] == labelled.about["dictionary_hash"]
    assert {*about["texts"]} == {"pick", "check", "held_out", "outside"}


def test_only_some_features_are_labelled_where_only_those_are_asked_for(
    model: ReplacementModel, labelled: FeatureStore
):
    before = dict(labelled.labels.rows)
    labelled.label(model, texts(3, 200), features=[(0, 2)])
    after = labelled.labels.rows
    assert {at: row for at, row in after.items() if at != (0, 2)} == {
        at: row for at, row in before.items() if at != (0, 2)
    }
    with pytest.raises(TraceError, match="there is no feature 0/99"):
        labelled.label(model, texts(3, 200), features=[(0, 99)])


def test_only_what_is_asked_for_is_held_and_refused_before_text_is_read(
    model: ReplacementModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    seen, real = [], run.observe
    monkeypatch.setattr(run, "observe", lambda *given: seen.append(real(*given)) or seen[-1])
    with pytest.raises(TraceError, match="no feature 0/99"):
        store.label(model, texts(3, 200), features=[(0, 99)])
    assert not seen
    store.label(model, texts(3, 200), features=[(0, 2)])
    assert {int(row) for one in seen for row in one.fires[0].nonzero()[0]} == {2}


def test_classes_that_are_given_are_named(model: ReplacementModel, store: FeatureStore):
    classes = {"a ten": ["10", "11", "12"], "other": ["1", "2"]}
    store.label(model, texts(1, 200), classes=classes)
    assert store[0, 2].label == "on a ten"
    assert store.labels.about["classes"] == {"a ten": ["10", "11", "12"], "other": ["1", "2"]}
    with pytest.raises(TraceError, match="class 'x': none of its words is a token"):
        store.label(model, texts(1, 200), classes={"x": ["no such word"]})


def test_mistakes_are_one_line(model: ReplacementModel, store: FeatureStore):
    with pytest.raises(TraceError, match="too few documents to be dealt out, expected 4 or more"):
        store.label(model, texts(1, 2))
    with pytest.raises(TraceError, match="belongs to the dictionary"):
        store.label(reading_model([(5,), (6,)], [1, 2]), texts(1, 200))
    (store.path / FILE).write_bytes(b"torn")
    with pytest.raises(TraceError, match=r"cannot be read .* label the store anew"):
        FeatureStore.load(store.path)[0, 0]


def test_a_graph_takes_its_labels_from_the_store(model: ReplacementModel, labelled: FeatureStore):
    graph = tracer.trace(model, [0, 5, 20, 11], store=labelled)
    nodes = {
        row["id"]: row["label"] for row in graph.nodes.to_pylist() if row["feature"] is not None
    }
    assert nodes["0_0_1"] == "on “5” · 5"
    assert nodes["0_2_3"] == "≈ on “11” +2 · 11"  # what holds in the prompt stands first
    known = graph.metadata["labels"]
    assert known["0/0"]["f1"] == 1
    assert known["0/0"]["source"] == "predicate"
    assert (known["0/0"]["polysemantic"], known["0/2"]["polysemantic"]) == (False, True)
    assert graph.metadata["dictionary_hash"] == labelled.about["dictionary_hash"]
    picture = graph.to_dot()
    assert "by where it fires" in picture
    assert "by what it promotes" not in picture


def test_a_label_that_does_not_hold_in_the_prompt_says_so():
    fruit = [{"name": "a fruit", "class": True}, {"name": "nut/Nut", "class": False, "tokens": [1]}]
    clause = [{"kind": "on", "any": fruit}, {"kind": "says", "any": fruit[:1]}]
    classes = Classes({"a fruit": ["pear", "fig", "kiwi"], "a thing": ["pear", "fig", "kiwi", "x"]})
    seen = Prompt([" <s>", " Nut", " pear", " x"], 3, ["fig"])
    assert in_prompt([clause], 2, seen, classes) == "on a fruit +1, says a fruit"
    assert in_prompt([clause], 1, seen, classes) == "on “nut/Nut” +1, says a fruit"
    assert in_prompt([clause], 3, seen, classes) == "mostly on a fruit +1, says a fruit"
    other = [{"kind": "after", "any": fruit[:1]}]
    assert in_prompt([clause, other], 3, seen, classes) == "after a fruit; +1"
    words = [{"name": name, "class": False, "tokens": [1]} for name in ("pear", "fig")]
    assert in_prompt([[{"kind": "on", "any": words}]], 2, seen, classes) == (
        "on a fruit (“pear” +1)"
    )
    seen = Prompt([" <s>", " kiwi", " x"], 2, [])
    assert in_prompt([[{"kind": "on", "any": words}]], 1, seen, classes) == (
        "on a fruit (mostly “pear” +1)"
    )
    assert in_prompt([[{"kind": "on", "any": words}]], 2, seen, classes) == (
        "mostly on a fruit (“pear” +1)"
    )
    seen = Prompt([" <s>", " Nut", " pear", " x"], 3, ["fig"])
    start = [{"kind": "after", "any": [{"name": "the start", "class": True}]}]
    assert in_prompt([start], 1, seen, classes) == "after the start"
    assert in_prompt([start], 2, seen, classes) == "mostly after the start"


def test_the_name_of_a_class_is_no_word_of_another():
    either = [{"name": "fruit", "class": True}, {"name": "leaf", "class": False, "tokens": [1]}]
    classes = Classes({"fruit": ["pear", "fig"], "a word of botany": ["fruit", "leaf"]})
    seen = Prompt([" <s>", " pear", " x"], 2, [])
    assert in_prompt([[{"kind": "on", "any": either}]], 1, seen, classes) == "on fruit +1"


def test_the_store_beside_the_dictionary_is_found(
    model: ReplacementModel, labelled: FeatureStore, tmp_path: Path
):
    beside = replace(model, dictionary_folder=tmp_path / "planted")
    found, refused_ = store_of(beside)
    assert (found and found.path, refused_) == (labelled.path, None)
    assert "labels" in tracer.trace(beside, [0, 5, 20]).metadata
    plain = tracer.trace(model, [0, 5, 20])
    assert "labels" not in plain.metadata
    assert "by what it promotes" in plain.to_dot()


def test_the_store_beside_the_dictionary_is_read_once_until_it_changes(
    model: ReplacementModel, labelled: FeatureStore, tmp_path: Path
):
    beside = replace(model, dictionary_folder=tmp_path / "planted")
    first, _ = store_of(beside)
    assert first is not None
    assert store_of(beside)[0] is first
    assert first.label_of(0, 1).label != "my own"
    FeatureStore.load(labelled.path).set_labels({(0, 1): "my own"})  # as another process would
    again, _ = store_of(beside)
    assert again is not None
    assert again.label_of(0, 1).label == "my own"


def test_another_dictionarys_store_is_not_used(labelled: FeatureStore, tmp_path: Path):
    other = replace(reading_model([(5,)], [1]), dictionary_folder=tmp_path / "planted")
    graph = tracer.trace(other, [0, 5, 20])
    assert "labels" not in graph.metadata
    assert "belongs to another dictionary" in graph.metadata["labels_refused"]
    with pytest.raises(TraceError, match="belongs to the dictionary"):
        tracer.trace(other, [0, 5, 20], store=labelled)


def test_where_no_label_is_true_the_example_stands(model: ReplacementModel, store: FeatureStore):
    from tracer.features.labels import table

    row = dict.fromkeys(table.COLUMNS.names) | {"layer": 0, "feature": 0, "shown": False}
    row |= {"label": "on “6”", "f1": 0.2, "example": "3 4 [5]", "polysemantic": True, "mixed": 3.5}
    table.write([row], {}, store.path)
    graph = tracer.trace(model, [0, 5, 20], store=store)
    labels = {row["id"]: row["label"] for row in graph.nodes.to_pylist()}
    assert labels["0_0_1"] == "≈ e.g. 3 4 [5] · 5"
    assert labels["0_3_2"].startswith("promotes 16")
    assert graph.metadata["labels"]["0/0"]["f1"] == 0.2
    assert graph.metadata["labels"]["0/0"]["source"] == "example"
    assert "F1 below 0.5" in graph.to_dot()


def test_own_labels_win_and_stay(model: ReplacementModel, labelled: FeatureStore):
    labelled.set_labels({(0, 1): "sevens and eights"})
    again = FeatureStore.load(labelled.path)
    assert again[0, 1].label == "sevens and eights"
    assert again.name(0, 1) == "sevens and eights"
    assert [hit.feature for hit in again.search("sevens", by="label")] == [1]
    graph = tracer.trace(model, [0, 7, 20], store=again)
    assert "sevens and eights · 7" in graph.nodes["label"].to_pylist()
    assert graph.metadata["labels"]["0/1"]["source"] == "user"
    again.set_labels({(0, 1): None})
    assert str(again[0, 1].label).startswith("on ")
    with pytest.raises(TraceError, match="there is no feature 0/77"):
        again.set_labels({(0, 77): "x"})


def test_own_labels_go_to_a_file_and_to_no_other_dictionary(
    model: ReplacementModel, labelled: FeatureStore, tmp_path: Path
):
    store, file = str(labelled.path), str(tmp_path / "mine.json")
    assert "no labels of your own" in refused("label", store, "--export", file)
    assert succeed("label", store, "0/1", "sevens").startswith("Named 0/1: sevens")
    assert "1 labels" in succeed("label", store, "--export", file)
    assert json.loads(Path(file).read_text())["dictionary"] == labelled.about["dictionary_hash"]
    graph = str(tmp_path / "a.graph")
    tracer.trace(model, [0, 7, 20], store=labelled).save(graph)
    (labelled.path / OWN).unlink()
    assert "Took 1 labels" in succeed("label", store, "--import", file)
    assert FeatureStore.load(store)[0, 1].label == "sevens"
    other = reading_model([(5,), (6,)], [1, 2])
    theirs = FeatureStore.build(
        other, texts(), tmp_path / "o", context=16, window=16, alone=True, tokens=3
    )
    said = refused("label", str(theirs.path), "--import", file)
    assert "features of another dictionary are other features" in said
    assert "holds labels of the dictionary" in said
    elsewhere = str(tmp_path / "b.graph")
    tracer.trace(other, [0, 5, 20], store=theirs).save(elsewhere)
    assert "another dictionary" in refused("label", elsewhere, "--import", file)


def test_a_graph_keeps_a_users_label(
    model: ReplacementModel, labelled: FeatureStore, tmp_path: Path
):
    graph, file = str(tmp_path / "a.graph"), str(tmp_path / "mine.json")
    tracer.trace(model, [0, 5, 20], store=labelled).save(graph)
    succeed("label", graph, "0/0", "fives")
    found = tracer.AttributionGraph.load(graph)
    assert "fives · 5" in found.nodes["label"].to_pylist()
    assert found.metadata["labels"]["0/0"]["source"] == "user"
    assert "fives" in succeed("show", graph)
    succeed("label", graph, "--export", file)
    succeed("label", graph, "0/0", "--remove")
    back = tracer.AttributionGraph.load(graph)
    assert "on “5” · 5" in back.nodes["label"].to_pylist()
    assert back.metadata["labels"]["0/0"]["source"] == "predicate"
    succeed("label", graph, "--import", file)
    assert "fives · 5" in tracer.AttributionGraph.load(graph).nodes["label"].to_pylist()
    assert "no node is feature 0/3" not in refused("label", graph, "0/1", "--remove")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected L/F with a text or --remove, or --export, or --import"),
        (["0/0"], "expected L/F with a text"),
        (["0/0", "x", "--remove"], "expected L/F with a text"),
        (["five", "x"], "'five' is not L/F"),
        (["0/0", "  "], "the label is empty"),
        (["0/99", "x"], "there is no feature 0/99"),
        (["9/0", "x"], "layer 9 has no features"),
        (["--import", "nowhere.json"], "there is no such file of labels"),
    ],
)
def test_mistakes_in_naming_are_one_line(store: FeatureStore, arguments: list[str], said: str):
    assert said in refused("label", str(store.path), *arguments)
    assert not (store.path / OWN).exists()


def test_a_file_that_is_no_labels_is_refused(store: FeatureStore, tmp_path: Path):
    (tmp_path / "x.json").write_text('{"format": "other"}')
    assert "is no file of labels" in refused(
        "label", str(store.path), "--import", str(tmp_path / "x.json")
    )
    (store.path / OWN).write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        store.label_of(0, 0)


class Answers(BaseHTTPRequestHandler):
    """Fails as often as it is told to, then explains and judges as a script says."""

    failures: ClassVar[list[int]] = []
    seen: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []
    marked = "«5»"

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers.get("Authorization"))
        if self.failures:
            self.send_error(self.failures.pop(0))
            return
        self.seen.append(sent)
        system, user = (one["content"] for one in sent["messages"])
        said = json.dumps({"choices": [{"message": {"content": self.answer(system, user)}}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said.encode())

    def answer(self, system: str, user: str) -> str:
        if "You explain" in system:
            return "the number five"
        lines = [line for line in user.splitlines() if line[:1].isdecimal()]
        words = [line.partition(". ")[2].split() for line in lines]
        wanted = self.marked if "in «marks». Say" in system else "5"
        return f"Here: {[int(wanted in line) for line in words]}"

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    Answers.failures, Answers.seen, Answers.keys = [], [], []
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_is_asked_again_and_never_twice(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Answers.failures = [429, 500]
    endpoint = Endpoint(url, "m", tmp_path / "answers", wait=0.001)
    assert endpoint.ask("You explain", "x") == "the number five"
    assert (endpoint.asked, len(Answers.seen), {*Answers.keys}) == (3, 1, {"Bearer secret"})
    assert endpoint.ask("You explain", "x") == "the number five"
    assert (endpoint.asked, len(Answers.seen)) == (3, 1)
    [kept] = (tmp_path / "answers").iterdir()
    assert "secret" not in kept.read_text()
    assert Answers.seen[0]["model"] == "m"
    assert Answers.seen[0]["temperature"] == 0


def test_an_endpoint_that_fails_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint = Endpoint(url, "m", wait=0.001, tries=2, budget=5)
    Answers.failures = [401]
    with pytest.raises(TraceError, match="401"):
        endpoint.ask("a", "b")
    Answers.failures = [503, 503]
    with pytest.raises(TraceError, match="503"):
        endpoint.ask("a", "b")
    assert {*Answers.keys} == {None}
    Answers.failures = [503, 503, 503]
    with pytest.raises(TraceError, match="503"):
        endpoint.ask("a", "b")
    with pytest.raises(SpentError, match="5 requests were made"):
        endpoint.ask("a", "b")
    with pytest.raises(TraceError, match="no answer"):
        Endpoint("http://127.0.0.1:9/v1", "m", tries=1).ask("a", "b")
    with pytest.raises(TraceError, match="expected an address"):
        Endpoint("file:///etc/passwd", "m")


def test_a_language_model_names_what_rules_do_not(
    url: str, model: ReplacementModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    from tracer.features.labels import choosing

    monkeypatch.setattr(choosing, "choose", lambda *_: None)
    endpoint = Endpoint(url, "m", store.path.with_name("answers"), wait=0.001, budget=3)
    store.label(model, texts(1, 200), endpoint=endpoint)
    named = store.labels.rows[0, 0]
    assert (named["label"], named["source"], named["shown"]) == (
        "the number five",
        "endpoint",
        True,
    )
    assert (named["f1"], named["fuzzing"]) == (1, 1)
    assert endpoint.asked == 3  # explain, detect, fuzz; then the budget was spent
    assert not store.labels.rows[0, 1]["shown"]
    assert store[0, 0].label == "the number five"
    graph = tracer.trace(model, [0, 5, 20], store=store)
    assert "the number five · 5" in graph.nodes["label"].to_pylist()
    assert graph.metadata["labels"]["0/0"]["source"] == "endpoint"


def test_an_explanation_that_fits_nothing_is_not_shown(
    url: str, model: ReplacementModel, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    from tracer.features.labels import choosing

    monkeypatch.setattr(choosing, "choose", lambda *_: None)
    endpoint = Endpoint(url, "m", wait=0.001)
    store.label(model, texts(1, 200), features=[(0, 3)], endpoint=endpoint)  # it fires on 20
    assert not store.labels.rows[0, 3]["shown"]
    assert store.label_of(0, 3).source == "example"


def test_a_token_that_everything_promotes_names_nothing():
    """One unembedding row is long and apart from the others: any vector moves it most."""
    model = replacement_model("gpt2")
    rows = model.host.unembedding
    with torch.no_grad():
        rows[7] = 40 * rows.mean(0) + 60 * torch.ones(rows.shape[1], dtype=rows.dtype)
    every = torch.arange(24)
    read = model.host.final_norm.centre(written_by(model, 0, every)) * model.host.final_norm.weight
    assert int(((read @ rows.T).argmax(1) == 7).sum()) >= 10
    named = promoted_tokens(model, torch.stack([torch.zeros_like(every), every]), 1)
    assert sum(first == ["7"] for first in named) <= 4  # of 24 features
