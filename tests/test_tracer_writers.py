"""The vectors that sources write: gathered right, whichever way they are copied."""

import pytest
import torch

from replacement_models import ReplacementModel
from tests.random_models import PROMPT, replacement_model
from tracer import writers
from tracer.linear import _columns


def gathered(model: ReplacementModel) -> list[writers.Writers]:
    """Every layer's writers on the prompt."""
    features = _columns(model.record(PROMPT).features, skip_positions=1)
    others = range(1, 1 + len(model.host.blocks))
    return writers.gather(model.transcoder, features, len(PROMPT), others)


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_features_are_written_where_their_columns_say(kind: str):
    model = replacement_model("gpt2", kind=kind)
    features = _columns(model.record(PROMPT).features, skip_positions=1)
    for target, one in enumerate(gathered(model)):
        for position in range(len(PROMPT)):
            first, count = one.first[position], one.features(position)
            for column, vector in enumerate(one.of_features(position), start=first):
                layer, feature = int(features.layer[column]), features.feature[column : column + 1]
                slot = target - model.transcoder.targets(layer).start
                row = model.transcoder.decoder_rows(layer, feature)[0, slot]
                assert torch.equal(vector, features.activation[column] * row)
                assert int(features.position[column]) == position
            assert len(one.at(position)) == count + one.rest


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_copying_by_runs_equals_copying_all_at_once(monkeypatch: pytest.MonkeyPatch, kind: str):
    model = replacement_model("llama", kind=kind)
    by_runs = gathered(model)
    monkeypatch.setattr(writers, "_copy_runs", writers._copy_all)
    for one, other in zip(by_runs, gathered(model), strict=True):
        for position in range(len(PROMPT)):
            assert torch.equal(one.of_features(position), other.of_features(position))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_reconstruction_is_the_sum_of_what_features_write(dtype: torch.dtype):
    one, *_ = gathered(replacement_model("gpt2", dtype))
    expected = [one.of_features(position).sum(0) for position in range(len(PROMPT))]
    torch.testing.assert_close(one.reconstruction(), torch.stack(expected))
