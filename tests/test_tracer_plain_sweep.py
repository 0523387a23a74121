"""The fast sweep gives what the plain one does: any site, any position, one or several."""

import numpy as np
import pytest
import torch

from replacement_models import ReadPoint, ReplacementModel
from replacement_models.sites import Site, Stage
from tests.random_models import PROMPT, WIDTH, replacement_model
from tracer import TraceError
from tracer.attribution.local_model import linearise
from tracer.attribution.plain_sweep import plain_sweep
from tracer.attribution.sweep import Effects, sweep
from tracer.attribution.targets import TargetRows, feature_rows

MODELS = [
    ("gpt2", {"skip": True}),
    ("gpt2", {"kind": "per_layer"}),
    ("llama", {"skip": True, "read": ReadPoint.NORMED_UNWEIGHTED}),
    ("gpt_neox", {"skip": True}),
    ("gemma2", {"skip": True, "kind": "per_layer"}),
    ("olmo2", {"skip": True}),
]
model_options = pytest.mark.parametrize(("family", "options"), MODELS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows_everywhere(model: ReplacementModel) -> TargetRows:
    """A row for every site of the stream and every position, position 0 included."""
    recording, vector = model.record(PROMPT), noise(WIDTH)
    places = [(site, position) for site in model.host.stream_sites for position in range(6)]
    return TargetRows(
        site=np.array([site.number for site, _ in places]),
        position=np.array([position for _, position in places]),
        vector=vector.repeat(len(places), 1),
        bias=torch.zeros(len(places)).double(),
        value=torch.stack([recording.stream(site)[position] @ vector for site, position in places]),
    )


def spread_everywhere(model: ReplacementModel) -> TargetRows:
    """A row for every site of the stream, at several positions each."""
    recording, sites = model.record(PROMPT), model.host.stream_sites
    vector, weights = noise(len(sites), WIDTH), noise(len(sites), len(PROMPT), seed=1)
    weights[::2, 4:] = 0
    weights[::3, 0] = 0
    streams = torch.stack([recording.stream(site) for site in sites])
    return TargetRows.spread(
        site=np.array([site.number for site in sites]),
        weights=weights,
        vector=vector,
        bias=torch.zeros(len(sites)).double(),
        value=torch.einsum("rp,rpd,rd->r", weights, streams, vector),
    )


def both(model: ReplacementModel, rows: TargetRows, skip_positions: int) -> tuple[Effects, Effects]:
    with torch.no_grad():
        recording = model.record(PROMPT)
        fast = sweep(linearise(model, recording, skip_positions), rows)
        bare = linearise(model, recording, skip_positions, plain=True)
        return fast, plain_sweep(model, recording, bare, rows)


def assert_same(fast: Effects, plain: Effects) -> None:
    largest = float(plain.sources.abs().max())
    assert float((fast.sources - plain.sources).abs().max()) < 1e-11 * largest
    assert float((fast.constant - plain.constant).abs().max()) < 1e-11 * largest


def assert_adds_up(found: Effects, rows: TargetRows, tolerance: float) -> None:
    wrong = found.sources.sum(1) + found.constant - rows.value
    assert float(wrong.abs().max()) < tolerance * float(rows.value.abs().max())


@pytest.mark.parametrize("skip_positions", [0, 1, 3])
@model_options
def test_a_row_at_any_site_and_position_is_what_the_plain_sweep_finds(
    family: str, options: dict, skip_positions: int
):
    model = replacement_model(family, **options)
    rows = rows_everywhere(model)
    fast, plain = both(model, rows, skip_positions)
    assert_same(fast, plain)
    assert_adds_up(fast, rows, 2e-5)


@pytest.mark.parametrize("skip_positions", [0, 1, 3])
@model_options
def test_a_row_at_several_positions_is_what_the_plain_sweep_finds(
    family: str, options: dict, skip_positions: int
):
    model = replacement_model(family, **options)
    rows = spread_everywhere(model)
    fast, plain = both(model, rows, skip_positions)
    assert_same(fast, plain)
    assert_adds_up(fast, rows, 2e-5)


@model_options
def test_feature_rows_are_what_the_plain_sweep_finds(family: str, options: dict):
    model = replacement_model(family, **options)
    with torch.no_grad():
        recording = model.record(PROMPT)
        local = linearise(model, recording, 1)
        rows = feature_rows(model, recording, local, np.arange(len(local.features)))
    assert_same(*both(model, rows, 1))


def test_a_row_at_several_positions_is_the_weighted_sum_of_rows_at_one():
    model = replacement_model("llama", skip=True)
    weights, vector = torch.tensor([[0.5, 0.0, -2.0, 0.0, 1.0, 0.0]]).double(), noise(1, WIDTH)
    site, zero = np.array([Site(2, Stage.RESID_PRE).number]), torch.zeros(1).double()
    spread = TargetRows.spread(site, weights, vector, zero, zero)
    assert spread.position.tolist() == [4]
    alone = TargetRows(
        site.repeat(3), np.array([0, 2, 4]), vector.repeat(3, 1), *[zero.repeat(3)] * 2
    )
    with torch.no_grad():
        local = linearise(model, model.record(PROMPT), 1)
        whole, parts = sweep(local, spread), sweep(local, alone)
    share = weights[0, [0, 2, 4]]
    torch.testing.assert_close(whole.sources[0], share @ parts.sources, rtol=0, atol=1e-11)
    torch.testing.assert_close(whole.constant[0], share @ parts.constant, rtol=0, atol=1e-11)


def test_a_row_without_weights_is_refused():
    zero = torch.zeros(1).double()
    with pytest.raises(TraceError, match="row 0 has no weight at any position"):
        TargetRows.spread(np.array([0]), torch.zeros(1, 6).double(), noise(1, WIDTH), zero, zero)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_skipped_position_holds_tokens_and_constants_only(family: str):
    model = replacement_model(family, skip=True)
    rows = rows_everywhere(model)
    with torch.no_grad():
        local = linearise(model, model.record(PROMPT), 3)
        found = sweep(local, rows)
    tokens = local.token_column(0)
    early = torch.from_numpy(rows.position < 3)
    assert found.sources[early, :tokens].abs().max() == 0
    assert found.sources[early, tokens : tokens + 3].abs().max() > 0
