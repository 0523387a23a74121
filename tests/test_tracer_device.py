"""What is made stands on the model's device, and nothing in a block of rows waits for it.

Shown on tensors that hold no numbers.

Tensors on torch's meta device know their shape only, so whatever asks one for a number, or mixes it
with a tensor elsewhere, raises: what would make the host wait for a GPU, or fail there.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tracer
from tests.random_models import PROMPT, replacement_model
from tracer import Intervention
from tracer.attribution import blocks, finished, frontier_on_device, packing, sweep
from tracer.attribution.landing import Landing
from tracer.attribution.local_model import LocalModel, linearise
from tracer.attribution.targets import feature_rows, logit_targets
from tracer.attribution.writers import gather
from tracer.patching import Kind, ablate, logit_difference, patch, path_patch

META = torch.device("meta")


def on_meta(thing: Any) -> Any:
    """The same with every tensor's numbers gone."""
    if isinstance(thing, Tensor):
        return thing.to(META)
    if isinstance(thing, list | tuple):
        return type(thing)(on_meta(part) for part in thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: on_meta(getattr(thing, f.name)) for f in fields(thing)})
    return thing


def without_numbers(local: LocalModel) -> LocalModel:
    """The local model on the meta device, but for its table, which is read once a trace."""
    gone: LocalModel = on_meta(local)
    return gone


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@torch.no_grad()
def test_what_writes_is_gathered_without_asking_the_device(kind: str):
    model = replacement_model("gpt2", kind=kind)
    local = linearise(model, model.record(PROMPT), skip_positions=1)
    layers = [layer.to(META, model.dtype) for layer in model.transcoder.layers]
    gone, others = type(model.transcoder)(layers), [one.others for one in local.writers]
    found, sums = gather(gone, on_meta(local.features), local.table, local.positions, others)
    assert {total.device for total in sums} == {META}
    for one, expected in zip(found, local.writers, strict=True):
        assert one.vectors.device == META
        assert one.vectors.shape == expected.vectors.shape
        assert (one.start, one.first) == (expected.start, expected.first)
        for name in ("place", "column", "used"):
            assert getattr(one.padded, name).device == META


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2"])
@torch.no_grad()
def test_a_sweep_asks_the_device_for_nothing(family: str, kind: str, skip: bool):
    model = replacement_model(family, kind=kind, skip=skip)
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions=1)
    columns = np.arange(len(local.features))
    for rows in (
        logit_targets(model, recording, None, 10, 0.95).rows,
        feature_rows(model, recording, local, columns),
    ):
        effects = sweep.sweep(without_numbers(local), on_meta(rows))
        assert effects.sources.device == META
        assert effects.sources.shape == (len(rows), local.columns)
        assert effects.constant.shape == (len(rows),)


@pytest.mark.parametrize("floor", [0.0, 0.01])
@torch.no_grad()
def test_packing_and_ranking_ask_the_device_for_nothing(floor: float):
    model = replacement_model("gpt2")
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions=1)
    columns = np.arange(len(local.features))
    rows = feature_rows(model, recording, local, columns)
    dense = torch.empty(len(rows), local.columns, device=META)
    parts, floored = finished.parts_of(local, rows), floor > 0
    size = packing.packed_bytes(*dense.shape, dense.itemsize, floor)
    into = packing.Packed.within(
        torch.empty(size, dtype=torch.uint8, device=META),
        *(len(rows), packing.room_for(parts, floor), dense.dtype, floored),
    )
    packing.pack(dense, rows, packing.Standing.of(local, META), floor, into)
    over = frontier_on_device.FrontierOnDevice.over
    frontier = over(columns, local.columns, len(rows), dense)
    frontier.take(dense, into.sums[1], (rows.site, columns), np.zeros(len(rows)))
    assert frontier.influence().device == META


WAITS = {
    *("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_consecutive"),
    *("masked_select", "unique_dim"),
}
"""Operators that make the host wait for a GPU."""


class Watched(TorchDispatchMode):
    """Counts operators that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [one for one in indices if getattr(one, "dtype", None) == torch.bool]
        self.waits += [name] if name in WAITS or masks else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("cap", "every"), [(None, None), (60, 30)])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@torch.no_grad()
def test_the_host_waits_once_a_block_and_a_block_ahead(
    kind: str, floor: float, cap: int | None, every: int | None, monkeypatch: pytest.MonkeyPatch
):
    """A fake device: main memory treated as a GPU's."""
    model, said = replacement_model("gpt2", kind=kind), []
    settings: dict[str, Any] = {"max_features": cap, "rank_every": every, "edge_floor": floor}
    plain = tracer.trace(model, PROMPT, **settings)

    def begin(self: Landing, dense: Tensor) -> None:
        said.append("begun")
        really(self, dense)

    def landed(self: Landing, rows: int) -> Tensor:
        said.append("waited")
        return self.memory[:rows]

    def fetched(there: Tensor) -> Tensor:
        said.append("ranked")
        return there.clone()

    really = Landing.begin
    monkeypatch.setattr(frontier_on_device, "fetched", fetched)
    monkeypatch.setattr(Landing, "begin", begin)
    monkeypatch.setattr(Landing, "landed", landed)
    monkeypatch.setattr(blocks, "needed", lambda device: True)
    monkeypatch.setattr(blocks, "BLOCK_ON_GPU", 16)
    for module in (blocks, finished):
        monkeypatch.setattr(module, "PART", 8)
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions=1)
    assert len(local.table) == 3  # read once a trace
    logits = logit_targets(model, recording, None, 10, 0.95)
    count = len(local.features) if cap is None else cap
    plan = blocks.Plan(count, every or 16, floor, None, False)
    with Watched() as watched:
        found = list(blocks.finished_blocks(model, recording, local, logits, plan))
    assert watched.waits == []
    assert said.count("begun") == said.count("waited") == len(found)
    assert said.count("ranked") == (0 if cap is None else 2)
    if cap is not None:  # the next rows are chosen before the last ones have landed
        before = said[: len(said) - said[::-1].index("ranked")]
        assert before.count("begun") == before.count("waited") + 1
    first = [one for one in said if one != "ranked"][:4]
    assert first == ["begun", "waited", "begun", "begun"]  # the logits, then one ahead
    again = tracer.trace(model, PROMPT, **settings)
    assert again.nodes["id"].equals(plain.nodes["id"])
    np.testing.assert_allclose(again.effect.toarray(), plain.effect.toarray(), atol=1e-12)


def test_blocks_on_a_gpu_are_larger():
    assert blocks.block_rows(10_000, 4, on_cpu=False) == 2048
    assert blocks.block_rows(10**6, 4, on_cpu=False) == 256


@torch.no_grad()
def test_what_asks_for_a_number_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    model = replacement_model("gpt2")
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions=1)
    rows = on_meta(logit_targets(model, recording, None, 10, 0.95).rows)
    with pytest.raises(RuntimeError, match="meta"):  # maps left elsewhere
        sweep.sweep(local, rows)
    product = sweep.product
    monkeypatch.setattr(sweep, "product", lambda x, w: product(x, w) * float(x.sum()))
    with pytest.raises(RuntimeError, match="meta"):
        sweep.sweep(without_numbers(local), rows)


OTHER = (1, 3, 12, 8, 22, 4)
WANTED = [Intervention(layer=1, position=2, feature=3, add=1.0)]


def test_whatever_is_made_stands_on_the_models_device():
    model = replacement_model("gpt2", kind="cross_layer")
    graph = tracer.trace(model, PROMPT, max_features=8)
    metric = logit_difference(model, 3, 4)
    target, source = (
        next(node["id"] for node in graph.nodes.to_pylist() if node["kind"] == kind)
        for kind in ("logit", "feature")
    )
    with META:  # where tensors stand that are not told where
        for mode in ("direct", "free"):
            tracer.intervene(model, PROMPT, WANTED, mode, patterns=True)
        tracer.generate(model, [PROMPT, PROMPT[:3]], WANTED, max_new_tokens=2, temperature=1.0)
        for kind in Kind:
            for method in ("exact", "attribution"):
                patch(model, PROMPT, OTHER, metric, sites=kind, method=method)
        for using in ("zero", "mean", "resample"):
            ablate(model, PROMPT, metric, sites="mlp", using=using, prompts=[OTHER])
        path_patch(model, graph, [(source, target)], metric)
        tracer.contrast(model, [(PROMPT, OTHER)], 1)
        tracer.validate(model, graph, [OTHER, PROMPT], draws=1)
