"""The feature store that ships with the embedded default: whose it is, and what its labels owe."""

import json
from collections.abc import Iterator

import pytest

import tracer
from replacement_models import ReplacementModel
from replacement_models.tiny.recipe.facts import PACKAGE, load_facts, split_cities
from replacement_models.tiny.recipe.label_texts import label_texts
from replacement_models.tiny.recipe.word_classes import word_classes
from tests.test_cli import succeed
from tracer import FeatureStore

SHIPPED = [name for name in ("clt", "plt") if (PACKAGE / f"{name}.features").is_dir()]
CITIES = split_cities(load_facts())


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.load()


@pytest.fixture(scope="module", params=SHIPPED)
def store(request: pytest.FixtureRequest) -> FeatureStore:
    return FeatureStore.load(PACKAGE / f"{request.param}.features")


def test_the_default_dictionary_has_a_store():
    assert "clt" in SHIPPED


def test_it_is_small():
    files = [file for name in SHIPPED for file in (PACKAGE / f"{name}.features").rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) <= 6e6


def test_it_belongs_to_its_dictionary(store: FeatureStore):
    store.check(ReplacementModel.load(transcoders=PACKAGE / store.path.stem))
    assert store.labels.about["dictionary_hash"] == store.about["dictionary_hash"]


def words_shown(store: FeatureStore) -> Iterator[str]:
    """Every word of the text that a label, an example or a table of tokens may show."""
    for row in store.labels.rows.values():
        for clause in json.loads(row["predicate"] or "[]"):
            for condition in clause:
                yield from (one["name"] for one in condition["any"] if not one["class"])
        yield from (row["example"] or "").replace("[", "").replace("]", "").split()
    for layer in store.layers:
        for tokens in store.features(layer)["fires_on"].to_pylist():
            yield from (token.strip() for token in tokens)


def test_no_test_city_names_a_feature(store: FeatureStore, model: ReplacementModel):
    """TEST cities are in no text that examples are shown from or labels were chosen on."""
    texts = label_texts(model.tokenizer)
    known = {word.strip(".,?") for text in (*texts.shown, *texts.chosen) for word in text.split()}
    hidden = {city for city in CITIES.test if city not in known}
    assert {"Dallas", "Oakland"} <= hidden
    assert len(hidden) > 90
    assert not hidden & {*words_shown(store)}
    held_out = {word.strip(".,?") for text in texts.held_out for word in text.split()}
    assert len(hidden & held_out) > 50  # they are scored on


def test_every_label_shown_is_true(store: FeatureStore):
    shown = [row for row in store.labels.rows.values() if row["shown"]]
    assert len(shown) > 500
    for row in shown:
        assert row["f1"] >= 0.5
        assert row["contradicted"] == []
        assert row["f1"] > row["always_f1"]
        clauses = json.loads(row["predicate"])
        plain = all(one["kind"] == "on" for clause in clauses for one in clause)
        assert row["f1"] >= row["list_f1"] if plain else row["f1"] > row["list_f1"]
        longest = [max(len(one["any"]) or 1 for one in clause) for clause in clauses]
        assert sum(longest) <= 5


def test_its_classes_are_the_recipes(store: FeatureStore):
    expected = {name: sorted(words) for name, words in word_classes().items()}
    assert store.labels.about["classes"] == expected


def test_the_default_graph_says_how_true_its_labels_are(model: ReplacementModel):
    graph = tracer.trace(model, "The opposite of hot is")
    known = graph.metadata["labels"]
    strongest = max(
        (row for row in graph.nodes.to_pylist() if row["kind"] == "feature"),
        key=lambda row: row["influence"],
    )
    assert f"{strongest['layer']}/{strongest['feature']}" in known
    assert {found["source"] for found in known.values()} <= {"predicate", "example", "token"}
    assert "labels_refused" not in graph.metadata


def test_show_says_how_mixed_a_feature_is():
    rows = FeatureStore.load(PACKAGE / "clt.features").labels.rows
    layer, feature = next(place for place, row in rows.items() if row["shown"])
    said = succeed("features", "show", f"{layer}/{feature}")
    assert "mixed\t" in said
    assert "F1 " in said
