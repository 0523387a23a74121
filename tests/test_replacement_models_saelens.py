"""Autoencoders in SAELens' layout, against its formula and there and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from replacement_models import (
    BatchTopK,
    DenseDecoder,
    JumpReLU,
    ModelError,
    ReLU,
    TranscoderLayer,
    load_transcoder,
    save_transcoder,
)
from replacement_models.dictionaries.activation import Activation, ReLUTopK
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.sites import Stage
from replacement_models.transcoder import Transcoder

D, F, K, TOKENS = 4, 10, 3, 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def written(folder: Path, architecture: str, **changes: Any) -> dict[str, Tensor]:
    """One layer as SAELens saves it."""
    weights = {
        "W_enc": normal(D, F),
        "b_enc": normal(F),
        "W_dec": normal(F, D, seed=1),
        "b_dec": normal(D),
    }
    if architecture == "jumprelu":
        weights["threshold"] = normal(F, seed=2).abs()
    config = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_pre", "sae_lens_version": "6.54.12"},
    }
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    save_file(weights, folder / "sae_weights.safetensors")
    return weights


def saelens(x: Tensor, weights: dict[str, Tensor], architecture: str, shifted: bool) -> Tensor:
    """What SAELens reconstructs (sae_lens/saes, version 6)."""
    hidden = (x - weights["b_dec"] * shifted) @ weights["W_enc"] + weights["b_enc"]
    active = hidden.relu()
    if architecture == "jumprelu":
        active = active * (hidden > weights["threshold"])
    if architecture == "topk":
        top = hidden.topk(K)
        active = torch.zeros_like(hidden).scatter(-1, top.indices, top.values.relu())
    return active @ weights["W_dec"] + weights["b_dec"]


def reconstruction(found: Transcoder, x: Tensor) -> Tensor:
    """What ours makes of it, at its one layer."""
    return found.decode([found.encode(0, x)[1]], [x])[0]


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_an_autoencoder_reconstructs_as_in_saelens(
    architecture: str, shifted: bool, tmp_path: Path
):
    changes = {"k": K} if architecture == "topk" else {}
    weights = written(tmp_path / "a", architecture, apply_b_dec_to_input=shifted, **changes)
    found, x = load_transcoder(tmp_path / "a"), normal(TOKENS, D, seed=9)
    assert found.kind == "sae"
    assert found.layers[0].stage is Stage.RESID_PRE
    expected = saelens(x, weights, architecture, shifted)
    assert torch.allclose(reconstruction(found, x), expected, atol=1e-5)


def autoencoder(activation: Activation, stage: Stage | None) -> SparseAutoencoder:
    layer = TranscoderLayer(
        normal(F, D), normal(F), DenseDecoder(normal(F, 1, D)), normal(D), activation, stage=stage
    )
    return SparseAutoencoder([layer], model="m")


@pytest.mark.parametrize("stage", [None, Stage.ATTN_OUT, Stage.RESID_MID])
@pytest.mark.parametrize(
    "activation",
    [ReLU(), JumpReLU(normal(F).abs()), ReLUTopK(K), BatchTopK(torch.tensor([0.4]))],
    ids=["relu", "jump_relu", "topk", "batch_topk"],
)
def test_an_autoencoder_comes_back_as_it_was_written(
    activation: Activation, stage: Stage | None, tmp_path: Path
):
    made, x = autoencoder(activation, stage), normal(TOKENS, D, seed=9)
    found = load_transcoder(save_transcoder(made, tmp_path / "there", "saelens"))
    assert found.layers[0].stage is (Stage.MLP_OUT if stage is None else stage)
    assert torch.equal(reconstruction(found, x), reconstruction(made, x))
    config = json.loads((tmp_path / "there" / "layer_0" / "cfg.json").read_text())
    assert config["metadata"]["sae_lens_version"] == "6.0.0"  # else it is rewritten as an old one


def test_layers_without_an_autoencoder_are_left_out(tmp_path: Path):
    made = autoencoder(ReLU(), Stage.MLP_OUT).layers[0]
    empty = TranscoderLayer.empty(made.b_dec, 1)
    there = save_transcoder(SparseAutoencoder([empty, made, empty]), tmp_path / "there", "saelens")
    assert [path.name for path in there.iterdir()] == ["layer_1"]
    assert load_transcoder(there).present == (1,)


def test_what_is_not_one_set_of_autoencoders_is_refused(tmp_path: Path):
    written(tmp_path / "a" / "0", "standard")
    written(tmp_path / "b", "topk")
    with pytest.raises(ModelError, match="needs k, got None"):
        load_transcoder(tmp_path / "b")
    places = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.mlp.hook_out"}
    written(
        tmp_path / "a" / "1", "transcoder", apply_b_dec_to_input=False, metadata=places, d_out=D
    )
    with pytest.raises(ModelError, match="autoencoders beside transcoders"):
        load_transcoder(tmp_path / "a")
    written(tmp_path / "c" / "0", "standard")
    written(tmp_path / "c" / "1", "standard", metadata={"hook_name": "blocks.1.hook_attn_out"})
    with pytest.raises(ModelError, match="hook_name differs between layers"):
        load_transcoder(tmp_path / "c")
