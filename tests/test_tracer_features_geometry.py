"""What a store says of decoders alone: their map, and what they promote through a Jacobian lens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_tracer_features_build import MODELS, SETTINGS, texts
from tracer import AffineLens, FeatureStore, TraceError
from tracer.features.geometry import Plane
from tracer.features.promoted import written_by


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
