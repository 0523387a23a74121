"""What a store says of decoders alone: their map, and what they promote through a Jacobian lens."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from tests.test_tracer_features_build import MODELS, SETTINGS, texts
from tracer import AffineLens, FeatureStore, TraceError
from tracer.features.geometry import Plane
from tracer.features.map_page import MARGIN, SIZE, Points, map_page, picture
from tracer.features.page import page
from tracer.features.promoted import written_by
from tracer.features.tables import FEATURES, layer_file, write


def lens_of(kind: str = "jacobian", layers: int = 3, width: int = 16) -> AffineLens:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(layers, width, width, generator=generator)
    return AffineLens(kind, maps, torch.zeros(layers, width), {})


def decoders(name: str) -> dict[int, np.ndarray]:
    model = MODELS[name]()
    return {
        layer: written_by(
            model, layer, torch.arange(len(model.transcoder.layers[layer].W_enc))
        ).numpy()
        for layer in model.transcoder.present
    }


@pytest.mark.parametrize("name", ["cross_layer", "some_layers", "neurons"])
def test_the_map_is_the_first_two_principal_components(name: str, tmp_path: Path):
    model = MODELS[name]()
    store = FeatureStore.build(model, texts(), tmp_path / "s", **{**SETTINGS, "neighbours": 0})
    by_layer = decoders(name)
    rows = np.concatenate([*by_layer.values()]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    centred = rows - rows.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:2].T
    found = np.concatenate(
        [
            np.stack([store.features(layer)[axis].to_numpy() for axis in ("x", "y")], axis=1)
            for layer in store.layers
        ]
    )
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-5)
    assert store.about["map_share"] == pytest.approx((sizes**2 / (sizes**2).sum())[:2])
    again = Plane.of(MODELS[name]())
    assert all(float(axis[axis.abs().argmax()]) > 0 for axis in again.axes.T)


@pytest.mark.parametrize("name", ["cross_layer", "jump_relu"])
def test_what_is_promoted_later_is_seen_through_the_jacobian_above(name: str, tmp_path: Path):
    model = MODELS[name]()
    width, layers = model.host.d_model, len(model.host.blocks)
    lens = lens_of(layers=layers, width=width)
    lens.save(tmp_path / "lens.safetensors")
    store = FeatureStore.build(
        model, texts(), tmp_path / "s", **SETTINGS, lens=tmp_path / "lens.safetensors"
    )
    norm, unembedding = model.host.final_norm, model.host.unembedding
    maps = [*lens.maps.to(unembedding)[1:], torch.eye(width, dtype=unembedding.dtype)]
    everything, first = [], model.transcoder.present[0]
    for layer in model.transcoder.present:
        count = len(model.transcoder.layers[layer].W_enc)
        rows = model.transcoder.decoder_rows(layer, torch.arange(count))
        everything.append(
            sum(
                rows[:, slot] @ maps[target].T
                for slot, target in enumerate(model.transcoder.targets(layer))
            )
        )
    logits = (norm.centre(torch.cat(everything)) * norm.weight) @ (
        unembedding - unembedding.mean(0)
    ).T
    scores = (logits - logits.mean(0)) / logits.std(0, correction=0)
    known = store[first, 4]
    assert [int(text) for text in known.promoted_later] == scores[4].topk(3).indices.tolist()
    assert known.promoted_later_score == pytest.approx(scores[4].topk(3).values.tolist(), rel=1e-3)
    assert known.promoted_later != known.promoted
    assert store.about["lens"] == lens.content_hash


def test_without_a_lens_nothing_is_promoted_later(tmp_path: Path):
    store = FeatureStore.build(MODELS["topk"](), texts(), tmp_path / "s", **SETTINGS)
    assert store[0, 1].promoted_later is None
    assert store.about["lens"] is None


@pytest.mark.parametrize(
    ("lens", "said"),
    [
        (lens_of("tuned"), "the lens is tuned, expected jacobian"),
        (lens_of(width=5), "but neural has 3 of width"),
    ],
)
def test_a_lens_that_does_not_fit_is_refused(lens: AffineLens, said: str, tmp_path: Path):
    with pytest.raises(TraceError, match=said):
        FeatureStore.build(MODELS["neurons"](), texts(), tmp_path / "s", **SETTINGS, lens=lens)
    assert [*tmp_path.iterdir()] == []


class Elements(HTMLParser):
    """Tags of a page, where links lead, and the ids there are."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        of = dict(attrs)
        self.attributes |= {*of}
        self.links += [of[name] or "" for name in ("href", "src") if name in of]
        self.ids |= {of["id"] or ""} if "id" in of else set()


def hostile_store(path: Path) -> FeatureStore:
    """A store whose features are called what breaks pages."""
    model = replace(MODELS["topk"](), labels={(0, 1): "<script>alert(1)</script>\x1b[2J"})
    return FeatureStore.build(model, texts(), path, **SETTINGS)


def test_a_point_of_the_map_leads_to_its_entry_and_nothing_runs(tmp_path: Path):
    store = hostile_store(tmp_path / "s")
    shown = map_page(store)
    seen = Elements()
    seen.feed(shown)
    assert seen.tags.count("circle") == store.count == len(seen.links)
    assert {link.removeprefix("#") for link in seen.links} == seen.ids
    assert all(link.startswith("#f") for link in seen.links)
    assert not {*seen.tags} & {"script", "img", "iframe", "link", "object", "foreignobject"}
    assert not any(name.startswith("on") for name in seen.attributes)
    assert "default-src 'none'" in shown
    assert "&lt;script&gt;" in shown
    assert "\x1b" not in shown
    assert shown == map_page(FeatureStore.load(store.path))


def test_of_a_large_dictionary_the_map_shows_what_fires_most(tmp_path: Path):
    store = FeatureStore.build(MODELS["topk"](), texts(), tmp_path / "s", **SETTINGS)
    points = Points.most_active(store, 5)
    counts = sorted(
        (n for layer in store.layers for n in store.features(layer)["active"].to_pylist()),
        reverse=True,
    )
    found = [store[place].active for place in zip(points.layer, points.feature, strict=True)]
    assert found == counts[:5]
    assert f"The 5 features of {store.count} that fire most" in map_page(store, 5)
    pixels = points.pixels(SIZE)
    assert pixels.min() >= MARGIN - 1e-6
    assert pixels.max() <= SIZE - MARGIN + 1e-6


def test_a_features_page_shows_where_it_lies(tmp_path: Path):
    store = hostile_store(tmp_path / "s")
    drawn = picture(store, store[0, 1])
    assert drawn.count("<title>") == 1 + len(store[0, 1].similar)
    assert "<h2>Map</h2>" in page(store, store[0, 1])


def test_a_store_without_a_map_says_so(tmp_path: Path):
    store = FeatureStore.build(MODELS["topk"](), texts(), tmp_path / "s", **SETTINGS)
    for layer in store.layers:
        file = layer_file(store.path, FEATURES, layer)
        write(parquet.read_table(file, partitioning=None).drop_columns(["x", "y"]), file)
    with pytest.raises(TraceError, match="before stores held a map"):
        map_page(store)
    assert "<h2>Map</h2>" not in page(store, store[0, 1])
