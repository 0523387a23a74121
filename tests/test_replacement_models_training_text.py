"""What a training run reads: rows of text, and what a model makes of them, place by place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from replacement_models import ReplacementModel
from replacement_models.training.config import TrainConfig
from replacement_models.training.harvest import Harvester, joined
from replacement_models.training.pool import Batches, Rows
from replacement_models.training.source import Source, trimmed
from replacement_models.training.text import packed, row_length
from replacement_models.training.trainee import Batch
from tests.random_models import LAYERS, replacement_model
from tests.training_runs import settings

ROWS = np.array([[1, 7, 12, 5, 22, 9], [1, 4, 2, 4, 9, -1], [1, 20, 3, -1, -1, -1]])
BOS, EOS, PAD = 1, 2, 0


def config(**sections: dict[str, Any]) -> TrainConfig:
    return TrainConfig.of({"output": "none", "model": "m", "data": {"corpus": "c"}} | sections)


def harvester(model: ReplacementModel, skip: int = 1, **dictionary: Any) -> Harvester:
    chosen = config(data={"corpus": "c", "skip_positions": skip, "rows": 2}, dictionary=dictionary)
    return Harvester(model, chosen, (0, 2), frozenset((BOS, EOS, PAD)))


def test_rows_are_as_long_as_asked_for_but_no_longer_than_the_model_reads():
    model = replacement_model()
    asked = {wanted: config(data={"corpus": "c", "context": wanted}) for wanted in (8, 16, 99)}
    assert [row_length(one, model) for one in asked.values()] == [8, 16, 16]
    without = replace(model, host=replace(model.host, context=None))
    assert [row_length(one, without) for one in asked.values()] == [8, 16, 99]


def test_without_a_corpus_the_embedded_models_own_sentences_are_read(tmp_path: Path):
    model = ReplacementModel.without_dictionary()

    def rows(name: str, seed: int, tokens: int, most: int | None) -> np.ndarray:
        folder = tmp_path / name
        folder.mkdir()
        chosen = settings(
            folder, data={"context": 16, "max_tokens": most}, run={"tokens": tokens, "seed": seed}
        )
        found = packed(TrainConfig.of(chosen), model, folder)
        assert packed(config(), model, folder).path == found.path  # read again, whatever is asked
        return found.tokens

    few, other = rows("a", 0, 300, 100), rows("b", 1, 100, None)
    assert few.shape == other.shape == (7, 16)
    for some in (few, other):
        assert int((some[:, 1:] >= 0).sum()) == 100
        assert (some[:, 0] == model.tokenizer.bos_token_id).all()
    assert (few != other).any()


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_text_counts_but_for_first_positions_and_special_tokens(skip: int):
    ids = torch.tensor([[5, 7, 1, 9, 2, 6], [1, 8, 0, 4, -1, -1]])
    expected = torch.tensor([[True, True, False, True, False, True], [False, True, False, True]
                             + 2 * [False]])  # fmt: skip
    expected[:, :skip] = False
    assert torch.equal(harvester(replacement_model(), skip).counted(ids), expected)


def seen(model: ReplacementModel, ids: Tensor) -> dict[str, list[Tensor]]:
    """By place, what modules of a Gemma 2 or a Llama read and gave, a layer each."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            whole = output[0] if isinstance(output, tuple) else output
            found.setdefault(f"{name} in", []).append(inputs[0] if inputs else whole)
            found.setdefault(f"{name} out", []).append(whole)

        return hook

    model_: Any = model.host.model
    layers = model_.model.layers
    post = hasattr(layers[0], "pre_feedforward_layernorm")
    names = {
        "attention": "post_attention_layernorm" if post else "self_attn",
        "norm": "pre_feedforward_layernorm" if post else "post_attention_layernorm",
        "mlp": "mlp",
        "post norm": "post_feedforward_layernorm" if post else "mlp",
    }
    hooks = [
        getattr(layer, module).register_forward_hook(keep(name))
        for layer in layers
        for name, module in names.items()
    ]
    with torch.no_grad():
        states = model_(input_ids=ids, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    found["stream"] = list(states[:-1])
    return found


@pytest.mark.parametrize("family", ["gemma2", "llama"])
@pytest.mark.parametrize(
    ("dictionary", "reads", "writes"),
    [
        ({"kind": "sae", "site": "resid_pre"}, "stream", "stream"),
        ({"kind": "sae", "site": "attn_out"}, "attention out", "attention out"),
        ({"kind": "sae", "site": "resid_mid"}, "norm in", "norm in"),
        ({"kind": "sae", "site": "mlp_out"}, "post norm out", "post norm out"),
        ({"read": "residual", "write": "post_norm"}, "norm in", "post norm out"),
        ({"read": "normed", "write": "mlp_output"}, "norm out", "mlp out"),
        ({"read": "normed_unweighted", "write": "mlp_output"}, "unweighted", "mlp out"),
    ],
)
def test_a_place_is_harvested_as_the_model_computes_it(
    family: str, dictionary: dict[str, Any], reads: str, writes: str
):
    model = replacement_model(family)
    found = harvester(model, **dictionary)(ROWS[:1])
    places = seen(model, torch.from_numpy(ROWS[:1]))
    places["unweighted"] = [
        x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in places["norm in"]
    ]
    assert len(found.inputs) == len(found.outputs) == 2
    for got, name in ((found.inputs, reads), (found.outputs, writes)):
        assert len(places[name]) == LAYERS
        for at, layer in enumerate((0, 2)):
            assert got[at].dtype == torch.float32
            torch.testing.assert_close(got[at].double(), places[name][layer][0, 1:], rtol=1e-5,
                                       atol=1e-5)  # fmt: skip


def test_groups_of_rows_follow_one_another_until_there_is_enough():
    model = replacement_model()
    one = harvester(model, kind="sae", site="resid_pre")
    source = Source(one, ROWS, Rows(np.arange(3), np.arange(0), 2))
    alone = joined([one(trimmed(ROWS[at : at + 1])) for at in range(3)])
    for most in (None, 1, 6, 8, 9, 99):
        before = source.harvested
        found = source.of_rows(np.arange(3), most)
        wanted = slice(0, most)
        assert len(found) == len(alone.inputs[0][wanted])
        for got, whole in zip(found.inputs, alone.inputs, strict=True):
            torch.testing.assert_close(got, whole[wanted])
        ran = 11 if most is not None and most <= 8 else 14
        assert source.harvested - before == ran
    assert source(0) is source(0)
    assert source(1) is not source(0)


def test_rows_are_trimmed_to_their_last_token():
    assert trimmed(ROWS).shape == (3, 6)
    assert trimmed(ROWS[1:]).shape == (2, 5)
    assert trimmed(ROWS[2:]).tolist() == [[1, 20, 3]]
    assert trimmed(np.full((2, 4), -1)).shape == (2, 1)


def test_a_stream_goes_on_from_every_place():
    """The end of a pool too, where no whole batch is left in it."""

    def chunk(number: int) -> Batch:
        tokens = torch.arange(20.0)[:, None] + 100 * number
        return Batch([tokens], [tokens])

    stream = Batches(chunk, 3, 6, seed=0)
    for _ in range(12):
        again = Batches(chunk, 3, 6, seed=0, place=stream.place)
        expected = next(stream).inputs[0]
        assert len(expected) == 6
        assert torch.equal(next(again).inputs[0], expected)
        assert again.place == stream.place


def test_some_rows_are_held_out_and_the_others_fill_chunks():
    rows = Rows.of(10, 0.25, 3, seed=4)
    assert (len(rows.held_out), rows.chunk, rows.chunks) == (2, 3, 2)
    assert sorted([*rows.order, *rows.held_out]) == list(range(10))
    assert [rows.rows_of(at).tolist() for at in range(2)] == [
        *(rows.order[:3].tolist(), rows.order[3:6].tolist())
    ]
    other = Rows.of(10, 0.25, 3, seed=5)
    assert rows.order.tolist() != other.order.tolist()
    assert Rows.of(10, 0.01, 99, seed=4).chunk == 9
