"""A model over several devices: a trace follows the layers, and gives what it gives on one.

No GPU is needed: two devices are played (played_devices.py), with accelerate's own hooks between.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import tracer
from replacement_models import ModelError, ReplacementModel, save_transcoder
from replacement_models.hosts import host_of
from tests.played_devices import FIRST, SECOND, PlayedDevices, played_devices
from tests.random_hybrids import HYBRIDS, hybrid, hybrid_language_model
from tests.random_models import LAYERS, PROMPT, language_model, replacement_model, transcoder
from tracer import AttributionGraph, Intervention
from tracer.attribution import local_model
from tracer.attribution.local_model import linearise
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import feature_rows
from tracer.commands import main
from tracer.patching import Kind, ablate, logit_difference, patch, path_patch

accelerate = pytest.importorskip("accelerate")
OUTSIDE = {
    "gpt2": ("transformer.wte", "transformer.wpe", "transformer.h", "transformer.ln_f", "lm_head"),
    "llama": ("model.embed_tokens", "model.rotary_emb", "model.layers", "model.norm", "lm_head"),
}
BELOW = (FIRST, FIRST, FIRST, SECOND, SECOND, SECOND)
"""Embeddings, three layers, final norm, unembedding: the bottom on the first device."""
ABOVE = (FIRST, FIRST, SECOND, SECOND, SECOND, FIRST)
"""Back to the first at the end, as where embeddings and unembedding are tied."""
APART = (SECOND, FIRST, SECOND, FIRST, SECOND, FIRST)
"""No part beside its neighbour."""
ALONE = (FIRST,) * 6
Places = Sequence[torch.device]


@pytest.fixture
def played() -> Iterator[PlayedDevices]:
    with played_devices() as mode:
        yield mode


def device_map(family: str, places: Places) -> dict[str, torch.device]:
    *low, layers, norm, head = OUTSIDE.get(family, OUTSIDE["llama"])
    found = dict.fromkeys(low, places[0])
    found |= {f"{layers}.{at}": places[1 + at] for at in range(LAYERS)}
    return found | {norm: places[-2], head: places[-1]}


def spread(
    family: str, places: Places, elsewhere: str | None = None, **options: Any
) -> ReplacementModel:
    """As `replacement_model`, over played devices."""
    model = language_model(family)
    accelerate.dispatch_model(model, device_map(family, places), FIRST, force_hooks=True)
    dictionary = transcoder(**options)
    return ReplacementModel.from_huggingface(model, None, dictionary, f"random-{family}", elsewhere)


def map_of(model: Any, places: Places) -> dict[str, torch.device]:
    """Embeddings, layers in turn, final norm, unembedding of any model; the rest on the first."""
    host, names = host_of(model), {id(part): name for name, part in model.named_modules()}
    body = model.base_model
    first = f"{model.base_model_prefix}."
    found = {f"{first}{name}": FIRST for name, _ in body.named_children() if name != "layers"}
    blocks = [0, 0, 1, 2, 2] if host.family == "nemotron_h" else [0, 1, 2]
    places_of = [places[1 + block] for block in blocks]
    found |= {f"{first}layers.{at}": places_of[at] for at in range(len(body.layers))}
    found |= {names[id(host.embedding)]: places[0], names[id(host.final_norm.module)]: places[-2]}
    return found | {"lm_head": places[-1]}


def spread_hybrid(family: str, places: Places, **options: Any) -> ReplacementModel:
    """As `hybrid`, over played devices."""
    model = hybrid_language_model(family)
    accelerate.dispatch_model(model, map_of(model, places), FIRST, force_hooks=True)
    dictionary = transcoder(**{"skip": True, **options})
    return ReplacementModel.from_huggingface(model, None, dictionary)


def same(found: AttributionGraph, expected: AttributionGraph, off: float = 1e-12) -> None:
    assert found.nodes["id"].equals(expected.nodes["id"])
    assert abs(found.effect - expected.effect).max() <= off
    for name in ("activation", "constant", "left_out", "influence"):
        ours, theirs = (graph.nodes[name].to_numpy() for graph in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=off, err_msg=name)


CASES: dict[str, tuple[str, Places, dict[str, Any], dict[str, Any]]] = {
    "cross-layer, below": ("llama", BELOW, {"skip": True}, {}),
    "cross-layer, above": ("llama", ABOVE, {"skip": True}, {}),
    "cross-layer, apart": ("llama", APART, {"skip": True}, {}),
    "per-layer": ("llama", APART, {"kind": "per_layer"}, {}),
    "learned positions": ("gpt2", APART, {"skip": True}, {"skip_positions": 0}),
    "two skipped": ("gpt2", BELOW, {}, {"skip_positions": 2}),
    "post-norms": ("gemma2", APART, {"skip": True}, {}),
    "capped": ("qwen2", APART, {}, {"max_features": 20, "rank_every": 8, "edge_floor": 1e-3}),
    "patterns made anew": ("mistral", APART, {}, {"recompute_patterns": True}),
    "error elsewhere": ("llama", APART, {"at": (0, 1), "elsewhere": "error"}, {}),
    "neurons elsewhere": (
        *("mixtral", APART),
        {"at": (0,), "elsewhere": "neurons", "kind": "per_layer"},
        {},
    ),
    "what steers attention": ("llama", APART, {}, {"keep_attention": True, "max_features": 20}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trace_over_two_devices_is_that_over_one(case: str, played: PlayedDevices):
    family, places, options, settings = CASES[case]
    expected = tracer.trace(replacement_model(family, **options), PROMPT, **settings)
    found = tracer.trace(spread(family, places, **options), PROMPT, **settings)
    same(found, expected)


@pytest.mark.parametrize("family", HYBRIDS)
def test_hybrids_are_traced_over_two_devices_as_over_one(family: str, played: PlayedDevices):
    expected = tracer.trace(hybrid(family), PROMPT)
    model = spread_hybrid(family, APART)
    same(tracer.trace(model, PROMPT), expected)
    same(tracer.trace(model, PROMPT, recompute_patterns=True), expected)
    change = tracer.intervene(model, PROMPT, WANTED, "direct")
    known = tracer.intervene(hybrid(family), PROMPT, WANTED, "direct")
    np.testing.assert_allclose(*(one.logits.cpu().numpy() for one in (change, known)), atol=1e-11)


def test_sums_are_added_in_one_order_on_any_number_of_devices(
    played: PlayedDevices, monkeypatch: pytest.MonkeyPatch
):
    """Bit for bit, where virtual weights, which end between devices, take no part."""
    monkeypatch.setattr(local_model, "virtual_pays", lambda *_: False)
    expected = tracer.trace(spread("llama", ALONE, skip=True), PROMPT)
    found = tracer.trace(spread("llama", APART, skip=True), PROMPT)
    assert (found.effect != expected.effect).nnz == 0
    assert found.nodes.equals(expected.nodes)


def tensors(thing: Any) -> Iterator[Tensor]:
    """Every tensor of a value, but for what belongs to a module or a function."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from tensors(part)
    elif is_dataclass(thing) and not isinstance(thing, type):
        for field in fields(thing):
            yield from tensors(getattr(thing, field.name))


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
def test_every_tensor_of_a_layer_stands_beside_it(kind: str, played: PlayedDevices):
    model = spread("llama", ABOVE, kind=kind, skip=True)
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions=1)
    for layer, place in enumerate(ABOVE[1:4]):
        here = [
            (model.host.blocks[layer], model.transcoder.layers[layer], model.folded[layer]),
            (recording.layers[layer], recording.inputs[layer], recording.outputs[layer]),
            (recording.residuals[layer], recording.between[layer]),
            (local.layers[layer], local.writers[layer]),
        ]
        assert {tensor.device for tensor in tensors(here)} == {place}
    ends = (recording.features, recording.logits, recording.residuals[-1], local.features)
    assert {tensor.device for tensor in tensors(ends)} == {model.device} == {FIRST}
    assert model.host.devices == (FIRST, SECOND)
    assert "float64 on lazy:0, lazy:1" in repr(model)


@pytest.mark.parametrize(("places", "down", "up"), [(BELOW, 4, 2), (ALONE, 0, 0)])
def test_a_chunk_moves_once_between_devices_and_weights_never(
    places: Places, down: int, up: int, played: PlayedDevices
):
    """Down: gradients, vectors of rows, two sums. Up again: the sums, to where rows end."""
    model = spread("llama", places, skip=True)
    recording = model.record(PROMPT)
    local = linearise(model, recording, skip_positions=1)
    rows = feature_rows(model, recording, local, np.arange(len(local.features)))
    played.moves.clear()
    sweep(local, rows)
    between = {pair: count for pair, count in played.moves.items() if "cpu" not in pair}
    expected = {("lazy:1", "lazy:0"): down, ("lazy:0", "lazy:1"): up}
    assert between == {pair: count for pair, count in expected.items() if count}


OTHER = (1, 3, 12, 8, 22, 4)
WANTED = [Intervention(layer=layer, position=2, feature=3, add=1.0) for layer in (0, 1)]
TEXTS = [PROMPT + OTHER] * 30


def ends(graph: AttributionGraph) -> tuple[str, str]:
    """A target and a feature."""
    kinds = zip(graph.nodes["kind"].to_pylist(), graph.nodes["id"].to_pylist(), strict=True)
    first: dict[str, str] = {}
    for kind, name in kinds:
        first.setdefault(kind, name)
    return first["logit"], first["feature"]


def stored(model: ReplacementModel) -> list[Any]:
    """What a store holds of every feature."""
    with TemporaryDirectory() as folder:
        texts = [list(text) for text in TEXTS]
        store = tracer.FeatureStore.build(
            *(model, texts, Path(folder) / "store"),
            **{"context": 12, "window": 6, "batch": 3, "examples": 3, "neighbours": 2},
        )
        return [store.features(layer) for layer in store.layers]


Verb = Callable[[ReplacementModel, AttributionGraph], Any]
METRIC, SHORT = (3, 4), PROMPT[:3]
VERBS: dict[str, Verb] = {
    "intervene": lambda model, _: [
        tracer.intervene(model, PROMPT, WANTED, "direct", patterns=True),
        tracer.intervene(model, PROMPT, WANTED, "constrained", layers=range(2)),
        tracer.intervene(model, PROMPT, WANTED, "free", patterns=True),
    ],
    "generate": lambda model, _: tracer.generate(
        model, [PROMPT, PROMPT[:3]], WANTED, max_new_tokens=2, temperature=1.0
    ),
    "steer": lambda model, _: tracer.contrast(model, [(PROMPT, OTHER)], 1),
    "validate": lambda model, _: tracer.validate(
        model, tracer.trace(model, SHORT, max_features=3), [SHORT, OTHER[:3]], draws=1
    ),
    "head loadings": lambda model, graph: tracer.head_loadings(model, graph).heads,
    "chains of heads": lambda model, graph: tracer.head_chains(model, graph, *ends(graph)[::-1]),
    "head logits": lambda model, graph: tracer.head_logits(model, graph),
    "what attention answers": lambda model, graph: tracer.attention_effects(model, graph),
    "why a head looks": lambda model, graph: [
        tracer.explain_attention(model, graph, layer=layer, head=1, query=4) for layer in (1, 2)
    ],
    "head scores": lambda model, _: tracer.head_scores(model, length=4, count=2),
    "head weights": lambda model, _: [
        tracer.head_composition(model),
        tracer.head_virtual_weights(model, 1, 2, (0, 5)),
        tracer.head_virtual_weights(model, 1, 2, (2, 5)),
        tracer.head_virtual_weights(model, 2, 1, (0, 5), side="query"),
    ],
    "patch": lambda model, _: [
        patch(model, SHORT, OTHER[:3], logit_difference(model, *METRIC), sites=kind, method=method)
        for kind in (Kind.RESIDUAL, Kind.HEAD, Kind.FEATURE)
        for method in ("exact", "attribution")
    ],
    "ablate": lambda model, _: [
        ablate(
            *(model, PROMPT, logit_difference(model, *METRIC)),
            sites="mlp",
            using=using,
            prompts=[OTHER],
        )
        for using in ("zero", "mean", "resample")
    ],
    "patch a path": lambda model, graph: path_patch(
        model, graph, [ends(graph)[::-1]], logit_difference(model, *METRIC)
    ),
    "lenses": lambda model, _: [
        tracer.lens(model, PROMPT),
        tracer.lens(model, PROMPT, "local"),
        tracer.lens(model, PROMPT, lens=tracer.fit_lens(model, TEXTS, steps=2)),
    ],
    "why": lambda model, _: tracer.why(model, PROMPT, 3),
    "monitor": lambda model, _: [
        *tracer.monitor(model, [PROMPT, OTHER], [tracer.Watch("w", 0.1, ((1, 3), (0, 2)))])
    ],
    "jacobian lens": lambda model, _: tracer.lens(
        model, PROMPT, lens=tracer.fit_lens(model, TEXTS, "jacobian", steps=1)
    ),
    "evaluate": lambda model, _: (
        tracer.evaluate(
            model, [list(text) for text in TEXTS], context=12, alone_tokens=40, prompt_count=2
        ).figures
    ),
    "feature store": lambda model, _: stored(model),
    "features": lambda model, _: tracer.feature_maxima(model, [PROMPT, OTHER]),
}


def parts_of(thing: Any) -> list[Any]:
    """What is inside a value that is no number."""
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple):
        return list(thing)
    if isinstance(thing, AttributionGraph):
        return [thing.effect]
    for name in ("to_pylist", "toarray"):
        if hasattr(thing, name):
            return [getattr(thing, name)()]
    return [getattr(thing, one.name) for one in fields(thing)] if is_dataclass(thing) else []


def numbers(thing: Any) -> Iterator[np.ndarray]:
    """Every number of what a call returns, in one order."""
    if isinstance(thing, Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray | int | float):
        yield np.asarray(thing, dtype=float).ravel()
        return
    for part in parts_of(thing):
        yield from numbers(part)


@pytest.fixture(scope="module")
def cases() -> Iterator[list[tuple[ReplacementModel, AttributionGraph]]]:
    """A model on one device and over two, with small graphs."""
    with played_devices():
        models = replacement_model("llama", skip=True), spread("llama", ABOVE, skip=True)
        yield [(model, tracer.trace(model, PROMPT, max_features=12)) for model in models]


@pytest.mark.parametrize("verb", VERBS)
def test_whatever_is_asked_of_two_devices_is_what_one_says(verb: str, cases: list[Any]):
    with played_devices():
        expected, found = (
            np.concatenate([*numbers(VERBS[verb](model, graph))]) for model, graph in cases
        )
    assert len(expected) > 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


def test_a_layer_on_two_devices_is_refused(played: PlayedDevices):
    model = language_model("llama")
    where = {**device_map("llama", ALONE), "model.layers.1.mlp": SECOND}
    del where["model.layers.1"]
    where |= {
        f"model.layers.1.{name}": FIRST
        for name in ("self_attn", "input_layernorm", "post_attention_layernorm")
    }
    accelerate.dispatch_model(model, where, FIRST, force_hooks=True)
    with pytest.raises(ModelError, match="layer 1 of the model is spread over lazy:0, lazy:1"):
        ReplacementModel.from_huggingface(model, None, transcoder())


def test_what_does_not_follow_the_layers_says_so(played: PlayedDevices):
    said = "drive: the model is spread over lazy:0, lazy:1, and drive does not follow its layers"
    with pytest.raises(tracer.TraceError, match=said):
        tracer.drive(spread("llama", BELOW), (1, 3))


def test_workers_of_ray_refuse_a_spread_model(played: PlayedDevices, tmp_path: Path):
    from dataclasses import replace

    model = replace(spread("llama", BELOW), loaded_with={})
    with pytest.raises(tracer.TraceError, match="ray: the model is spread over lazy:0, lazy:1"):
        tracer.trace_many(model, [PROMPT], tmp_path / "out", ray="local")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("saved")
    language_model("llama", torch.float32).save_pretrained(folder / "model")
    save_transcoder(transcoder(), folder / "transcoders")
    return str(folder / "model"), str(folder / "transcoders")


MAPS = {
    "auto": "auto",
    "everything": {"": "cpu"},
    "whole layers": {"model.layers.0": "cpu", "model": "cpu", "lm_head": "cpu"},
    "disk": {"model": "disk", "lm_head": "cpu"},
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_main_memory_and_disk_gives_the_same_graph(name: str, saved: tuple[str, str]):
    expected = tracer.trace(ReplacementModel.load(*saved), PROMPT)
    model = ReplacementModel.load(*saved, device_map=MAPS[name])
    same(tracer.trace(model, PROMPT), expected, 0.0 if name != "disk" else 1e-6)
    assert model.loaded_with is not None
    assert model.loaded_with["device_map"] == MAPS[name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device_map": "everywhere"}, "device_map is 'everywhere', expected one of auto, "),
        ({"device_map": {"model": "cuda:7"}}, "device 'cuda:7' cannot be used here"),
        ({"device_map": {"model": 7}}, "device 'cuda:7' cannot be used here"),
        ({"device_map": {}}, "device_map is {}, expected one of auto"),
        ({"device_map": ["cpu"]}, "expected one of auto"),
        ({"device_map": "auto", "device": "cuda"}, "give one of the two"),
        (
            {"device_map": {"model": "cpu"}},
            "device_map has no place for lm_head.weight; name every part",
        ),
    ],
)
def test_a_map_that_cannot_be_is_refused(given: dict[str, Any], said: str, saved: tuple[str, str]):
    with pytest.raises(ModelError) as caught:
        ReplacementModel.load(*saved, **given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_a_way_or_a_file(saved: tuple[str, str], tmp_path: Path):
    named = ["--model", saved[0], "--transcoders", saved[1], "--device-map"]
    place = tmp_path / "map.json"
    place.write_text(json.dumps({"model": "cpu", "lm_head": "cpu"}))
    start = ["trace", "--tokens", "1,7,12", *named]
    for way in ("auto", str(place)):
        out = tmp_path / f"{Path(way).stem}.graph"
        done = CliRunner().invoke(main, [*start, way, "-o", str(out)])
        assert done.exit_code == 0, done.output
        assert out.is_dir()
    place.write_text("[1]")
    for way, said in ((str(place), "holds no map"), ("no.json", "cannot be read"), ("x", "'x'")):
        refused = CliRunner().invoke(main, [*start, way, "-o", str(tmp_path / "no")])
        assert refused.exit_code == 2
        assert said in refused.stderr
