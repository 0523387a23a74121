"""The vectors that sources write: gathered right, whichever way they are copied."""

import pytest
import torch
from torch import Tensor

from replacement_models import ReplacementModel
from tests.random_models import PROMPT, replacement_model
from tracer.attribution import writers
from tracer.attribution.local_model import _columns


def gathered(model: ReplacementModel) -> tuple[list[writers.Writers], Tensor]:
    """Every layer's writers on the prompt, and what their features add up to."""
    features = _columns(model.record(PROMPT).features, skip_positions=1)
    others = range(1, 1 + len(model.host.blocks))
    table = writers.table_of(features)
    return writers.gather(model.transcoder, features, table, len(PROMPT), others)


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_features_are_written_where_their_columns_say(kind: str):
    model = replacement_model("gpt2", kind=kind)
    features = _columns(model.record(PROMPT).features, skip_positions=1)
    for target, one in enumerate(gathered(model)[0]):
        for position in range(len(PROMPT)):
            first, count = one.first[position], one.features(position)
            for column, vector in enumerate(one.of_features(position), start=first):
                layer, feature = int(features.layer[column]), features.feature[column : column + 1]
                slot = target - model.transcoder.targets(layer)[0]
                row = model.transcoder.decoder_rows(layer, feature)[0, slot]
                assert torch.equal(vector, row)
                assert int(features.position[column]) == position
            assert len(one.at(position)) == count + one.others


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_copying_by_runs_equals_copying_all_at_once(monkeypatch: pytest.MonkeyPatch, kind: str):
    model = replacement_model("llama", kind=kind)
    by_runs, sums = gathered(model)
    monkeypatch.setattr(writers, "_copy_runs", writers._copy_all)
    at_once, same = gathered(model)
    torch.testing.assert_close(sums, same)
    for one, other in zip(by_runs, at_once, strict=True):
        for position in range(len(PROMPT)):
            assert torch.equal(one.of_features(position), other.of_features(position))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sums_are_what_features_write_as_strongly_as_they_fired(dtype: torch.dtype):
    model = replacement_model("gpt2", dtype)
    features = _columns(model.record(PROMPT).features, skip_positions=1)
    found, sums = gathered(model)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {total.dtype for total in sums} == {wanted}
    for one, total in zip(found, sums, strict=True):
        for position in range(len(PROMPT)):
            first, vectors = one.first[position], one.of_features(position)
            fired = features.activation[first : first + len(vectors)]
            expected = (fired[:, None].to(total) * vectors.to(total)).sum(0)
            torch.testing.assert_close(total[position], expected)
