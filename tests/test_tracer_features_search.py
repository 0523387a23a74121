"""Search, pages and the difference of two prompts; hostile text in all of them."""

import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from replacement_models import ReplacementModel
from tests.random_models import replacement_model
from tests.test_tracer_features_build import SETTINGS, texts
from tracer import TraceError
from tracer.commands.feature_words import context
from tracer.features.differing import differing
from tracer.features.page import page
from tracer.features.search import Index
from tracer.features.store import FeatureStore
from tracer.features.tables import (
    EXAMPLE_COLUMNS,
    EXAMPLES,
    FEATURE_COLUMNS,
    FEATURES,
    WINDOW_COLUMNS,
    WINDOWS,
    layer_file,
    write,
)

ROOT = Path(__file__).parents[1]
HOSTILE = {
    5: "</span><script>document.title='owned'</script>",
    6: "\x1b[31mred\x1b]0;owned\x07",
    7: "<img src=x onerror=alert(1)>",
    8: "\u202egnp.exe",
    9: "[bold]markup[/bold]",
    10: '" onmouseover="alert(1)',
}


class HostileTokenizer:
    """Ids are texts; some of those would be acted on by a browser or a terminal."""

    all_special_ids = (0, 1, 2)
    bos_token_id = eos_token_id = 1

    def decode(self, ids: list[int]) -> str:
        return HOSTILE.get(ids[0], f" word{ids[0]}")


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    plain = replacement_model(activation="jump_relu")
    places = {(layer, feature): HOSTILE[5] for layer in range(3) for feature in range(4)}
    return ReplacementModel(
        plain.host, plain.transcoder, HostileTokenizer(), name=HOSTILE[7], labels=places
    )


@pytest.fixture(scope="module")
def store(model: ReplacementModel, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("store") / "s"
    return FeatureStore.build(model, texts(), path, **SETTINGS)


def place(hit: Any) -> tuple[int, int]:
    return hit.layer, hit.feature


def everything(store: FeatureStore) -> dict[tuple[int, int], dict[str, Any]]:
    return {
        (layer, row["feature"]): row
        for layer in store.layers
        for row in store.features(layer).to_pylist()
    }


@pytest.mark.parametrize(
    ("by", "words", "weights"),
    [
        ("token", "fires_on", "fires_on_share"),
        ("promoted", "promoted", "promoted_score"),
    ],
)
def test_a_token_finds_the_features_that_have_it_by_weight(
    store: FeatureStore, by: str, words: str, weights: str
):
    expected = {
        key: row[weights][row[words].index(" word12")]
        for key, row in everything(store).items()
        if " word12" in row[words]
    }
    found = store.search("WORD12 ", by, limit=500)
    assert {place(hit): hit.score for hit in found} == pytest.approx(expected)
    assert [hit.score for hit in found] == sorted(expected.values(), reverse=True)
    assert store.search(" word12", by, limit=2) == found[:2]
    assert store.search("nowhere", by) == []


def test_part_of_a_label_finds_a_feature(store: FeatureStore):
    found = store.search("SCRIPT>doc", "label", limit=50)
    assert [place(hit) for hit in found] == [(a, b) for a in range(3) for b in range(4)]
    assert {hit.matched for hit in found} == {HOSTILE[5]}


def test_text_finds_the_features_whose_examples_hold_it(store: FeatureStore):
    query = "word12 word"
    expected = {}
    for layer, feature in everything(store):
        shown = store[layer, feature].examples
        held = [query in "".join(one.texts) for one in shown]
        if any(held):
            expected[layer, feature] = np.mean(held)
    found = store.search(query, "text", limit=500)
    assert {place(hit): hit.score for hit in found} == pytest.approx(expected)


def test_likeness_is_what_the_store_holds(store: FeatureStore):
    found = store.search("1/5", "similar")
    near = sorted(store[1, 5].similar, key=lambda one: -one["weight"])
    assert [place(hit) for hit in found] == [(one["layer"], one["feature"]) for one in near]


@pytest.mark.parametrize(
    ("query", "by", "said"),
    [
        ("x", "colour", "search by 'colour' is not known, expected one of token, promoted"),
        (" ", "token", "the query is empty"),
        ("five", "similar", "'five' is no feature; expected layer/feature"),
        ("0/24", "similar", "there is no feature 0/24"),
        ("9/1", "similar", "there is no feature 9/1"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(store: FeatureStore, query: str, by: str, said: str):
    with pytest.raises(TraceError, match=said):
        store.search(query, by)


LARGE, WORDS, EACH = 1_000_000, 50_000, 10


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A synthetic store of a million features in four layers, with what a search reads."""
    path, drawn = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    names = pa.array([f" w{number}" for number in range(WORDS)])
    count = LARGE // 4
    offsets = pa.array(np.arange(0, count * EACH + 1, EACH, dtype=np.int32))
    for layer in range(4):
        empty = FEATURE_COLUMNS.empty_table().schema
        columns: dict[str, Any] = {
            name: pa.nulls(count, empty.field(name).type) for name in empty.names
        }
        columns["feature"] = pa.array(np.arange(count, dtype=np.int32))
        columns["label"] = names.take(pa.array(drawn.integers(0, WORDS, count)))
        for name in ("fires_on", "promoted"):
            words = names.take(pa.array(drawn.integers(0, WORDS, count * EACH)))
            columns[name] = pa.ListArray.from_arrays(offsets, words)
        weights = pa.array(drawn.random(count * EACH, dtype=np.float32))
        columns["fires_on_share"] = pa.ListArray.from_arrays(offsets, weights)
        columns["promoted_score"] = columns["fires_on_share"]
        write(pa.table(columns).cast(FEATURE_COLUMNS), layer_file(path, FEATURES, layer))
        windows = drawn.integers(0, 20_000, count * 2)
        shown = {
            name: pa.nulls(count * 2, kind)
            for name, kind in zip(EXAMPLE_COLUMNS.names, EXAMPLE_COLUMNS.types, strict=True)
        }
        shown |= {
            "feature": pa.array(np.repeat(np.arange(count), 2), pa.int32()),
            "window": pa.array(windows),
        }
        write(pa.table(shown, schema=EXAMPLE_COLUMNS), layer_file(path, EXAMPLES, layer))
    tokens = names.take(pa.array(drawn.integers(0, WORDS, 20_000 * 64)))
    ends = pa.array(np.arange(0, 20_000 * 64 + 1, 64, dtype=np.int32))
    table = {
        name: pa.nulls(20_000, kind)
        for name, kind in zip(WINDOW_COLUMNS.names, WINDOW_COLUMNS.types, strict=True)
    }
    table |= {
        "window": pa.array(np.arange(20_000)),
        "texts": pa.ListArray.from_arrays(ends, tokens),
    }
    write(pa.table(table, schema=WINDOW_COLUMNS), path / WINDOWS)
    return Index(path, range(4))


@pytest.mark.parametrize("by", ["token", "promoted", "label", "text"])
def test_a_million_features_answer_within_a_tenth_of_a_second(large: Index, by: str):
    found = large.search("w777", by, 20)
    assert len(found) == 20
    seconds = []
    for query in ("w778", "w4242", "w31337"):
        begin = time.process_time()
        assert large.search(query, by, 20)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.1


def test_features_that_fire_on_one_prompt_only(model: ReplacementModel):
    prompt, other = [1, 7, 12, 5], [1, 22, 9, 14]
    found = differing(model, prompt, other, limit=1000)
    active = {}
    for name, ids in (("here", prompt), ("there", other)):
        seen = model.record(ids).features
        rows = zip(seen.layer.tolist(), seen.feature.tolist(), seen.position.tolist(), strict=True)
        active[name] = {(layer, feature) for layer, feature, at in rows if at > 0}
    assert {place(one) for one in found} == active["here"] - active["there"]
    assert [one.written for one in found] == sorted((o.written for o in found), reverse=True)
    for one in found[:5]:
        x = model.record(prompt).inputs[one.layer]
        values = model.transcoder.encode(one.layer, x)[1][:, one.feature]
        assert one.activation == pytest.approx(float(values[1:].max()))
        assert one.activation == pytest.approx(float(values[one.position]))
        rows = model.transcoder.decoder_rows(one.layer, torch.tensor([one.feature]))
        assert one.written == pytest.approx(one.activation * float(rows[0].sum(0).norm()))
    weaker = differing(model, prompt, other, silent=False, limit=1000)
    assert {place(one) for one in found} < {place(one) for one in weaker}
    assert differing(model, prompt, prompt) == []


class Elements(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_text_is_inert_on_a_page(store: FeatureStore):
    shown = ""
    for feature in range(24):
        text = page(store, store[0, feature])
        seen = Elements()
        seen.feed(text)
        assert not seen.tags & {"script", "img", "iframe", "link", "a", "object"}
        assert not any(name.startswith("on") or name in ("src", "href") for name in seen.attributes)
        assert "default-src 'none'" in text
        assert not {"\x1b", "\x07", "\u202e"} & {*text}
        shown += text
    for hostile in ("&lt;script&gt;", "&lt;img src=x", "[bold]markup", "onmouseover"):
        assert hostile in shown


def test_a_page_says_when_a_feature_never_fired(store: FeatureStore):
    silent = [key for key, row in everything(store).items() if not row["active"]]
    if not silent:
        pytest.skip("every feature fires")
    assert "Never active" in page(store, store[silent[0]])


def test_hostile_text_is_inert_on_a_terminal(store: FeatureStore):
    for feature in range(24):
        for one in store[0, feature].examples:
            assert context(one).isprintable(), context(one)
        assert store.name(0, feature).isprintable()


def test_opening_searching_and_showing_need_no_torch(store: FeatureStore):
    code = (
        "import sys; from tracer import FeatureStore; from tracer.features.page import page; "
        f"store = FeatureStore.load({str(store.path)!r}); store.search('word12'); "
        "page(store, store[1, 2]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
