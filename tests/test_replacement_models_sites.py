"""Sites are values: ordered as a forward pass meets them, named once, read back."""

import pytest
import torch

from replacement_models import ModelError
from replacement_models.sites import Site, Stage, stream_number, top_layer
from tests.random_models import LAYERS, PROMPT, replacement_model


def test_sites_compare_in_the_order_of_a_forward_pass():
    passed = [Site.embed()]
    for layer in range(LAYERS):
        passed += [Site(layer, stage) for stage in list(Stage)[1:5]]
    passed += [Site(LAYERS, Stage.RESID_PRE), Site.logits(LAYERS)]
    assert sorted(set(passed)) == passed
    numbers = [site.number for site in passed]
    assert numbers == sorted(set(numbers))


def test_a_name_is_read_back():
    for stage in (Stage.RESID_PRE, Stage.ATTN_OUT, Stage.RESID_MID, Stage.MLP_OUT):
        assert Site.parse(str(Site(12, stage))) == Site(12, stage)
    assert [str(Site.embed()), str(Site.logits(4))] == ["embed", "logits"]


@pytest.mark.parametrize("name", ["", "mlp_out", "mlp_out.-1", "mlp_out.1.2", "resid.3", "embed"])
def test_a_name_of_no_site_is_refused(name: str):
    with pytest.raises(ModelError, match=r"expected one of resid_pre\.L, attn_out\.L"):
        Site.parse(name)


def test_the_uppermost_layer_with_a_part_below_a_site():
    assert [top_layer(stream_number(layer)) for layer in range(3)] == [-1, 0, 1]
    assert [top_layer(stream_number(layer, between=True)) for layer in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(("family", "between"), [("llama", True), ("gpt_neox", False)])
def test_the_stream_lies_between_attention_and_mlp_unless_they_are_parallel(
    family: str, between: bool
):
    host = replacement_model(family).host
    assert (Site(1, Stage.RESID_MID) in host.stream_sites) == between
    assert len(host.stream_sites) == (2 * LAYERS + 1 if between else LAYERS + 1)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "gpt_neox"])
def test_what_lies_between_is_what_attention_left(family: str):
    model = replacement_model(family)
    recording = model.record(PROMPT)
    for layer, block in enumerate(model.host.blocks):
        frozen, x = recording.layers[layer], recording.residuals[layer]
        read = x if block.attention_norm is None else block.attention_norm.module(x)
        added = block.attend(read, frozen.attention_pattern())
        if block.attention_post_norm is not None:
            added = block.attention_post_norm.module(added)
        expected = x if block.parallel else x + added
        assert float((recording.between[layer] - expected).abs().max()) < 2e-5
