"""Other tools' transcoder files, laid out as those tools write them, against their own formulas."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import tracer
from graphs import AttributionGraph
from replacement_models import (
    DenseDecoder,
    JumpReLU,
    ModelError,
    PerLayerTranscoder,
    ReadPoint,
    ReplacementModel,
    Transcoder,
    WritePoint,
    load_transcoder,
    save_transcoder,
)
from replacement_models.dictionaries.partial import cover
from replacement_models.formats import FORMATS, WRITABLE, convert, names
from replacement_models.formats.one_width import ONE_WIDTH, of_one_width
from replacement_models.tiny.recipe.facts import PACKAGE
from tests import random_models
from tests.dictionaries import assert_same, computed, weights_of
from tests.peers import F, L, Peer, inputs, write_json
from tests.peers_cross_layer import (
    CltForge,
    CrosslayerCoding,
    CrosslayerTranscoder,
    OpenMoss,
    Sparsify,
)
from tests.peers_per_layer import GemmaScope, GemmaScope2, SaeLens
from tests.random_models import replacement_model, transcoder

CASES: dict[str, Callable[[], Peer]] = {
    "gemma-scope": GemmaScope,
    "gemma-scope-2 per-layer": GemmaScope2,
    "gemma-scope-2 plain": lambda: GemmaScope2(skip=False),
    "gemma-scope-2 cross-layer": lambda: GemmaScope2(cross_layer=True),
    "saelens": SaeLens,
    "saelens skip": lambda: SaeLens(skip=True),
    "saelens jumprelu": lambda: SaeLens("jumprelu", skip=True),
    "saelens old": lambda: SaeLens("jumprelu", old=True),
    "saelens old topk": lambda: SaeLens("topk", skip=True, old=True),
    "sparsify": lambda: Sparsify(norms=False),
    "sparsify normed": Sparsify,
    "sparsify clt": lambda: Sparsify(L),
    "sparsify clt window": lambda: Sparsify(2),
    "sparsify clt tied by source": lambda: Sparsify(L, tied=True),
    "sparsify clt tied by target": lambda: Sparsify(L, "concat"),
    "sparsify clt per layer": lambda: Sparsify(L, "per-layer"),
    "sparsify clt per layer window": lambda: Sparsify(2, "per-layer"),
    "openmoss clt": lambda: OpenMoss(True, "jumprelu"),
    "openmoss clt topk": lambda: OpenMoss(True, "topk"),
    "openmoss clt relu": lambda: OpenMoss(True, "relu"),
    "openmoss clt ungated": lambda: OpenMoss(True, "topk", gate=False),
    "openmoss plt": lambda: OpenMoss(False, "jumprelu"),
    "openmoss plt inference": lambda: OpenMoss(False, "topk", "inference"),
    "clt-forge": CltForge,
    "clt-forge per-layer": lambda: CltForge(cross_layer=False),
    "clt-forge sharded": lambda: CltForge(shards=2),
    **{
        f"crosslayer-transcoder {kind}": lambda kind=kind: CrosslayerTranscoder(kind)
        for kind in ("ReLU", "JumpReLU", "PerLayerTopK", "BatchTopK", "PerLayerBatchTopK")
    },
    "crosslayer-transcoder folded": lambda: CrosslayerTranscoder("JumpReLU", folded=True),
    "crosslayer-transcoder per-layer": lambda: CrosslayerTranscoder("JumpReLU", cross_layer=False),
    **{
        f"crosslayer-coding {tying} {method}": lambda tying=tying, method=method: CrosslayerCoding(
            tying, method
        )
        for tying in ("none", "per_source", "per_target")
        for method in ("none", "mean_std", "sqrt_d_model")
    },
    "crosslayer-coding relu": lambda: CrosslayerCoding(act="relu"),
}
"""A name that begins with the format's, and what writes it."""
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def peer(name: str) -> Peer:
    """The tool of this case, with its weights."""
    return CASES[name]()


@pytest.fixture
def folder(peer: Peer, tmp_path: Path) -> Path:
    """What that tool writes."""
    path = tmp_path / "set"
    path.mkdir()
    peer.save(path)
    return path


def close(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_names_known_without_torch_are_those_of_the_formats():
    assert tuple(FORMATS) == names.KNOWN
    assert tuple(WRITABLE) == names.WRITTEN


@every_case
def test_the_format_is_recognised_and_no_other_is_before_it(name: str, folder: Path):
    first, *_ = [format for format, module in FORMATS.items() if module.recognise(folder)]
    assert name == first or name.startswith(f"{first} ")


@every_case
@pytest.mark.parametrize("lazy", [False, True])
def test_outputs_are_those_of_the_peers_formula(peer: Peer, folder: Path, lazy: bool):
    found = load_transcoder(folder, lazy=lazy)
    assert found.kind == ("cross_layer" if peer.cross_layer else "per_layer")
    assert (found.read, found.write) == (peer.read, peer.write)
    x = inputs()
    active, outputs = computed(found, x)
    assert any((a != 0).any() for a in active)
    close(outputs, peer.outputs(x))
    if not peer.own_unit:
        close(active, peer.activations(x))


@every_case
def test_lazy_rows_are_the_eager_ones_and_eager_ones_are_in_memory(folder: Path):
    eager, lazy = (load_transcoder(folder, lazy=lazy) for lazy in (False, True))
    assert_same(lazy, eager)
    wanted = torch.tensor([7, 2, 2, 9])
    for index in range(L):
        rows = lazy.to("cpu", torch.float64).decoder_rows(index, wanted)
        assert torch.equal(rows, eager.decoder_rows(index, wanted).double())
        assert lazy.decoder_rows(index, wanted[:0]).shape[0] == 0
        assert type(eager.layers[index].decoder).__name__ == "DenseDecoder"
        assert type(lazy.layers[index].decoder).__name__ != "DenseDecoder"


@every_case
def test_our_own_format_holds_all_of_it(folder: Path, tmp_path: Path):
    found = load_transcoder(folder)
    assert_same(load_transcoder(convert(folder, tmp_path / "ours")), found)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_transcoder(folder)
    line = str(error.value)
    assert "\n" not in line
    assert str(folder) in line
    return line


@every_case
def test_a_missing_or_torn_weight_file_is_one_line(folder: Path):
    weights = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".npz"))
    weights[-1].write_bytes(weights[-1].read_bytes()[:-40])
    line = refusal(folder)
    assert "cannot be read as" in line
    assert weights[-1].name in line


TENSORS = [name for name in CASES if not name.startswith(("gemma-scope", "crosslayer-coding"))]


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_nobody_reads_is_refused_rather_than_dropped(folder: Path):
    file = sorted(folder.rglob("*.safetensors"))[0]
    save_file(load_file(file) | {"W_gate": torch.ones(2)}, file)
    assert "tensor 'W_gate' is not known in this format" in refusal(folder)


def edited(folder: Path, file: str, **changes: Any) -> None:
    """Change fields of every configuration file of that name."""
    for path in folder.rglob(file):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("gemma-scope-2 per-layer", "config.json", {"type": "crosscoder"}, "type is 'crosscoder'"),
        (
            "gemma-scope-2 per-layer",
            "config.json",
            {"architecture": "topk"},
            "architecture is 'topk'",
        ),
        (
            "gemma-scope-2 cross-layer",
            "config.json",
            {"hf_hook_point_in": "model.layers.0.output"},
            "hf_hook_point_in is 'model.layers.0.output'",
        ),
        ("saelens", "cfg.json", {"architecture": "gated"}, "architecture is 'gated'"),
        (
            "saelens",
            "cfg.json",
            {"normalize_activations": "layer_norm"},
            "normalize_activations is 'layer_norm', a variant that is not supported",
        ),
        (
            "saelens",
            "cfg.json",
            {"normalize_activations": "expected_average_only_in"},
            "there is no activation_scaler.json",
        ),
        ("saelens", "cfg.json", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input is True"),
        (
            "saelens",
            "cfg.json",
            {"metadata": {"hook_name": "blocks.0.hook_resid_pre"}},
            "hook_name is 'blocks.0.hook_resid_pre'",
        ),
        ("sparsify", "cfg.json", {"transcode": False}, "transcode is False"),
        ("sparsify", "cfg.json", {"activation": "groupmax"}, "activation is 'groupmax'"),
        ("sparsify", "cfg.json", {"k": None}, "k is None"),
        ("sparsify clt", "cfg.json", {"activation": "batchtopk"}, "activation is 'batchtopk'"),
        ("sparsify clt", "cfg.json", {"coalesce_topk": "group"}, "coalesce_topk is 'group'"),
        ("sparsify clt", "cfg.json", {"divide_cross_layer": True}, "divide_cross_layer is True"),
        ("openmoss clt", "config.json", {"act_fn": "layertopk"}, "act_fn is 'layertopk'"),
        ("openmoss clt", "config.json", {"norm_activation": "token-wise"}, "'token-wise'"),
        ("openmoss plt", "config.json", {"use_glu_encoder": True}, "use_glu_encoder is True"),
        ("openmoss plt", "config.json", {"sae_type": "lorsa"}, "sae_type is 'lorsa'"),
        ("clt-forge", "clt_cfg.json", {"n_layers": 0}, "n_layers is 0"),
        ("clt-forge", "clt_cfg.json", {"n_layers": 2}, "expected 2 and 3 matrices"),
        ("clt-forge", "clt_cfg.json", {"feature_sharding": True}, "rank0_clt_weights.safetensors"),
        (
            "crosslayer-coding none mean_std",
            "cfg.json",
            {"activation_fn": "batchtopk"},
            "activation_fn is 'batchtopk'",
        ),
        (
            "crosslayer-coding none mean_std",
            "cfg.json",
            {"mlp_input_template": None},
            "mlp_input_template is None",
        ),
        (
            "crosslayer-coding none none",
            "cfg.json",
            {"normalization_method": "mean_std"},
            "there is no norm_stats.json",
        ),
    ],
)
def test_an_unsupported_variant_is_named_by_its_field(
    folder: Path, file: str, changes: dict[str, Any], message: str
):
    edited(folder, file, **changes)
    assert message in refusal(folder)


@pytest.mark.parametrize("name", ["crosslayer-transcoder JumpReLU"])
@pytest.mark.parametrize(
    ("part", "path", "message"),
    [
        ("nonlinearity", "x.HeavysideStep", "nonlinearity is 'HeavysideStep'"),
        ("decoder", "x.MOLT", "decoder is 'MOLT'"),
        (
            "input_standardizer",
            "x.SamplewiseInputStandardizer",
            "input_standardizer is 'SamplewiseInputStandardizer'",
        ),
    ],
)
def test_a_part_of_a_crosslayer_transcoder_that_is_not_supported_is_named(
    folder: Path, part: str, path: str, message: str
):
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["model"]["init_args"][part]["class_path"] = path
    file.write_text(yaml.safe_dump(config))
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("sparsify clt", "h.0.mlp/sae.safetensors", "W_skips.1"),
        ("sparsify clt", "h.1.mlp/sae.safetensors", "post_encs.0"),
        (
            "crosslayer-coding per_target none",
            "model.safetensors",
            "decoder_module.feature_offset.1",
        ),
    ],
)
def test_what_no_linear_decoder_can_express_is_refused_unless_zero(
    folder: Path, file: str, key: str
):
    tensors = load_file(folder / file)
    save_file(tensors | {key: torch.ones_like(tensors[key])}, folder / file)
    assert f"{key} is not zero, a variant that is not supported" in refusal(folder)


@pytest.mark.parametrize("name", ["sparsify clt", "sparsify clt window"])
def test_one_decoder_for_all_targets_is_taken_only_where_it_is_said_to_be(folder: Path):
    file = folder / "h.0.mlp" / "sae.safetensors"
    tensors = load_file(file)
    tensors["W_dec"] = tensors.pop("W_decs.1")
    save_file(tensors, file)
    assert "W_decs.1" in refusal(folder)


@pytest.mark.parametrize("name", ["gemma-scope", "gemma-scope-2 per-layer", "saelens", "sparsify"])
def test_a_per_layer_set_may_lack_layers_but_no_model_takes_it_unasked(folder: Path):
    whole = load_transcoder(folder)
    first = sorted(path for path in folder.iterdir() if path.is_dir())[1]
    first.rename(first.parent.parent / "elsewhere")
    found = load_transcoder(folder)
    assert found.present == (0, 2)
    assert torch.equal(found.layers[2].W_enc, whole.layers[2].W_enc)
    host = replace(replacement_model("llama").host, unembedding=torch.zeros(9, found.d_model))
    with pytest.raises(ModelError, match="no dictionary at layers 1 of 3"):
        cover(host, found, None)


@pytest.mark.parametrize("name", ["sparsify clt"])
def test_a_layer_that_is_missing_from_a_cross_layer_set_is_named(folder: Path):
    first = sorted(path for path in folder.iterdir() if path.is_dir())[1]
    first.rename(first.parent.parent / "elsewhere")
    assert "layer 1 is missing (found layers [0, 2])" in refusal(folder)


@pytest.mark.parametrize("name", ["gemma-scope"])
def test_several_dictionaries_for_a_layer_are_refused(folder: Path):
    layer = folder / "layer_1" / "width_16k"
    (layer / "average_l0_7").rename(layer / "average_l0_20")
    (folder / "layer_0" / "width_16k" / "average_l0_7").rename(layer / "average_l0_7")
    assert "layer 1 has 2 transcoders (layer_1/width_16k/average_l0_20," in refusal(folder)


@pytest.mark.parametrize("name", ["gemma-scope"])
def test_a_compressed_archive_is_read_and_python_objects_are_not(folder: Path):
    expected = load_transcoder(folder)
    path = next(folder.glob("layer_1/**/*.npz"))
    arrays = dict(np.load(path))
    np.savez_compressed(path, **arrays)
    assert_same(load_transcoder(folder, lazy=True), expected)
    np.savez(path, **{**arrays, "b_dec": np.array([object()], dtype=object)})
    assert "params.npz: cannot be read as npz" in refusal(folder)


@pytest.mark.parametrize("name", ["gemma-scope", "gemma-scope-2 per-layer"])
def test_circuit_tracers_list_may_name_gemma_scopes_files(folder: Path):
    expected = load_transcoder(folder)
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".npz", ".safetensors"))
    read = {"normed": "mlp.hook_in", "normed_unweighted": "ln2.hook_normalized"}[expected.read]
    config = {
        "model_kind": "transcoder_set",
        "model_name": expected.model,
        "feature_input_hook": read,
        "feature_output_hook": "hook_mlp_out",
        "transcoders": [file.relative_to(folder).as_posix() for file in files],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert next(n for n, m in FORMATS.items() if m.recognise(folder)) == "circuit-tracer"
    assert_same(load_transcoder(folder), expected)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("name", ["gemma-scope-2 cross-layer"])
def test_circuit_tracers_list_of_a_cross_layer_one_may_have_an_entry_too_many(
    folder: Path, extra: int
):
    expected = load_transcoder(folder)
    files = [f"params_layer_{index}.safetensors" for index in range(L + extra)]
    config = {
        "model_kind": "cross_layer_transcoder",
        "model_name": expected.model,
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "transcoders": files,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert_same(load_transcoder(folder, lazy=True), expected)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "transcoders": files[:2]}))
    assert "expected (10, 2, 4) to go with" in refusal(folder)


@pytest.mark.parametrize("name", ["sparsify"])
def test_a_run_that_read_before_the_norm_says_so(folder: Path):
    write_json(folder / "config.json", {"hookpoints_in": [f"h.{i}.ln_2" for i in range(L)]})
    assert load_transcoder(folder).read is ReadPoint.RESIDUAL


GOLDEN = Path(__file__).parent / "data" / "golden"


def traced(transcoders: Path, case: str) -> AttributionGraph:
    model = ReplacementModel.load(GOLDEN / case / "model", transcoders)
    return tracer.trace(model, json.loads((GOLDEN / case / "meta.json").read_text())["tokens"])


WAYS = [
    ("llama_gqa_plt", "tracer"),
    ("llama_gqa_plt", "circuit-tracer"),
    ("llama_gqa_plt", "saelens"),
    ("llama_gqa_plt", "gemma-scope-2"),
    ("llama_gqa_clt", "tracer"),
    ("llama_gqa_clt", "circuit-tracer"),
    ("llama_skip_topk_plt", "tracer"),
    ("llama_skip_topk_plt", "circuit-tracer"),
    ("gpt2_plt", "saelens"),
]


@pytest.mark.parametrize(("case", "format"), WAYS)
def test_a_dictionary_converted_there_and_back_gives_the_identical_graph(
    case: str, format: str, tmp_path: Path
):
    source = GOLDEN / case / "transcoders"
    there = convert(source, tmp_path / "there", format)
    back = convert(there, tmp_path / "back", "circuit-tracer")
    expected = traced(source, case)
    for folder in (there, back):
        found = traced(folder, case)
        assert found.nodes.equals(expected.nodes)
        assert (found.effect != expected.effect).nnz == 0


AT_THE_NORM = (ReadPoint.NORMED_UNWEIGHTED, WritePoint.POST_NORM)
AT_THE_STREAM = (ReadPoint.RESIDUAL, WritePoint.MLP_OUTPUT)
AT_THE_MLP = (ReadPoint.NORMED, WritePoint.MLP_OUTPUT)
FITTING = {
    "tracer": ("cross_layer", True, "topk", AT_THE_NORM),
    "circuit-tracer": ("cross_layer", True, "jump_relu", AT_THE_STREAM),
    "clt-forge": ("cross_layer", False, "jump_relu", AT_THE_NORM),
    "crosslayer-coding": ("cross_layer", True, "jump_relu", AT_THE_STREAM),
    "crosslayer-transcoder": ("cross_layer", False, "jump_relu", AT_THE_STREAM),
    "gemma-scope": ("per_layer", False, "jump_relu", AT_THE_NORM),
    "gemma-scope-2": ("cross_layer", True, "jump_relu", (ReadPoint.NORMED, WritePoint.POST_NORM)),
    "openmoss": ("cross_layer", False, "jump_relu", AT_THE_NORM),
    "saelens": ("per_layer", True, "jump_relu", AT_THE_MLP),
    "sparsify": ("cross_layer", True, "relu_topk", AT_THE_MLP),
}
"""A dictionary that each format can hold: kind, skip, activation, places."""


@pytest.mark.parametrize("format", WRITABLE)
def test_every_written_format_gives_the_identical_graph_there_and_back(format: str, tmp_path: Path):
    kind, skip, activation, (read, write) = FITTING[format]
    made = transcoder(kind, skip, read, activation, write).to("cpu", torch.float32)
    source = save_transcoder(made, tmp_path / "source")
    there = convert(source, tmp_path / "there", format)
    back = convert(there, tmp_path / "back")
    expected, *found = (traced(folder, "llama_gqa_clt") for folder in (source, there, back))
    assert expected.effect.nnz > 1000
    for graph in found:
        assert graph.nodes.equals(expected.nodes)
        assert (graph.effect != expected.effect).nnz == 0


def test_layers_are_made_one_width_by_features_that_never_fire():
    given = load_transcoder(PACKAGE / "clt").to("cpu", torch.float32)
    rows = given.layers[0].decoder.rows(torch.arange(3))
    narrow = replace(
        given.layers[0],
        W_enc=given.layers[0].W_enc[:3],
        b_enc=given.layers[0].b_enc[:3],
        decoder=DenseDecoder(rows),
        activation=JumpReLU(torch.ones(3)),
    )
    uneven = type(given)([narrow, *given.layers[1:]], read=given.read, write=given.write)
    found = of_one_width(uneven)
    assert {len(layer.W_enc) for layer in found.layers} == {uneven.features}
    x = [torch.randn(5, given.d_model, generator=torch.Generator().manual_seed(0))] * 4
    for (active, got), (expected, wanted) in zip(
        zip(*computed(found, x), strict=True), zip(*computed(uneven, x), strict=True), strict=True
    ):
        assert torch.equal(active[:, : expected.shape[1]], expected)
        assert not active[:, expected.shape[1] :].any()
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("format", "activation"),
    [(one, "jump_relu") for one in ONE_WIDTH] + [("circuit-tracer", "relu")],
)
def test_narrow_layers_are_widened_by_features_that_never_fire(
    format: str, activation: str, tmp_path: Path
):
    cross, skip, _, (read, write) = FITTING[format]
    made = transcoder(cross, skip, read, activation, write).to("cpu", torch.float32)
    first = made.layers[0]
    some = torch.tensor([0, 2, 5])
    narrow = replace(
        first,
        W_enc=first.W_enc[some],
        b_enc=first.b_enc[some],
        decoder=DenseDecoder(first.decoder.rows(some)),
        activation=JumpReLU(first.activation.threshold[some])
        if isinstance(first.activation, JumpReLU)
        else first.activation,
    )
    uneven = type(made)([narrow, *made.layers[1:]], read=read, write=write)
    source = save_transcoder(uneven, tmp_path / "source")
    with pytest.raises(ModelError, match=r"one width|as many features"):
        save_transcoder(uneven, tmp_path / "as it is", format)
    found = load_transcoder(convert(source, tmp_path / "there", format))
    assert {len(layer.W_enc) for layer in found.layers} == {made.features}
    generator = torch.Generator().manual_seed(0)
    x = [50 * torch.randn(40, made.d_model, generator=generator) for _ in made.layers]
    for (active, got), (expected, wanted) in zip(
        zip(*computed(found, x), strict=True), zip(*computed(uneven, x), strict=True), strict=True
    ):
        assert expected.any()
        torch.testing.assert_close(active[:, : expected.shape[1]], expected)
        assert not active[:, expected.shape[1] :].any()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("format", WRITABLE)
def test_what_is_said_beside_weights_stands_a_field_a_line(format: str, tmp_path: Path):
    kind, skip, activation, (read, write) = FITTING[format]
    made = transcoder(kind, skip, read, activation, write).to("cpu", torch.float32)
    for file in save_transcoder(made, tmp_path / "there", format).rglob("*.json"):
        text = file.read_text("utf-8")
        assert text.endswith("}\n")
        assert text.count("\n") > len(json.loads(text))


@pytest.mark.parametrize("format", WRITABLE)
def test_twelve_layers_come_back_by_number_not_by_name(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(random_models, "LAYERS", 12)
    kind, skip, activation, (read, write) = FITTING[format]
    made = transcoder(kind, skip, read, activation, write, at=range(12)).to("cpu", torch.float32)
    found = load_transcoder(save_transcoder(made, tmp_path / "set", format))
    for layer, expected in zip(found.layers, made.layers, strict=True):
        assert torch.equal(layer.W_enc, expected.W_enc)
        assert torch.equal(layer.b_dec, expected.b_dec)


@pytest.mark.parametrize(
    ("case", "format", "message"),
    [
        ("llama_gqa_clt", "saelens", "SAELens cannot hold kind cross_layer, only per_layer"),
        (
            "llama_gqa_clt",
            "gemma-scope-2",
            "Gemma Scope 2 cannot hold activation of layer 0 relu, only jump_relu",
        ),
        ("llama_skip_topk_plt", "saelens", "activation of layer 0 topk"),
        ("llama_skip_topk_plt", "gemma-scope-2", "activation of layer 0 topk"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(
    case: str, format: str, message: str, tmp_path: Path
):
    with pytest.raises(ModelError, match=message):
        convert(GOLDEN / case / "transcoders", tmp_path / "there", format)
    assert not list(tmp_path.iterdir())


THROUGH_A_LOGARITHM = ("clt-forge", "crosslayer-coding", "openmoss")
"""Formats that store the logarithm of a threshold."""
REWRITTEN = [
    name
    for name in CASES
    if name.startswith(("gemma-scope", "sparsify", "clt-forge", "crosslayer-", "openmoss"))
    or name in ("saelens", "saelens skip", "saelens jumprelu", "saelens old")
]


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_format_is_written_as_it_is_read(peer: Peer, folder: Path, name: str, tmp_path: Path):
    expected = load_transcoder(folder)
    format = next(format for format, module in FORMATS.items() if module.recognise(folder))
    there = convert(folder, tmp_path / "there", format)
    found = load_transcoder(there, lazy=True)
    assert next(f for f, module in FORMATS.items() if module.recognise(there)) == format
    jumps = isinstance(found.layers[0].activation, JumpReLU)
    if jumps and format in (
        "clt-forge",
        "openmoss",
        "crosslayer-coding",
    ):  # thresholds go through a logarithm
        found, expected = (rounded(one) for one in (found, expected))
    assert (found.kind, found.read, found.write) == (expected.kind, expected.read, expected.write)
    theirs, ours = weights_of(expected), weights_of(found)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    stored = {key for file in folder.rglob("*.safetensors") for key in load_file(file)}
    written = {key for file in there.rglob("*.safetensors") for key in load_file(file)}
    untied = ("W_decs", "b_decs", "W_skips", "decoder_module.decoders", "decoder_module.skip")
    assert {key for key in written - stored if not key.startswith(untied)} <= {"threshold"}
    about = [file.read_text() for file in there.rglob("*.json")]
    assert all("\n  " in text for text in about)  # for people too


def rounded(transcoder: Transcoder) -> Transcoder:
    layers = [
        replace(layer, activation=JumpReLU(layer.activation.threshold.round(decimals=5)))
        for layer in transcoder.layers
    ]
    return type(transcoder)(layers, read=transcoder.read, write=transcoder.write)


def gemma_scope_in(folder: Path) -> Path:
    GemmaScope().save(folder / "set")
    return folder / "set"


def test_thresholds_below_zero_are_refused_where_they_would_pass_nothing(tmp_path: Path):
    layers = [
        replace(layer, activation=JumpReLU(torch.full((F,), -1.0)))
        for layer in load_transcoder(gemma_scope_in(tmp_path)).layers
    ]
    with pytest.raises(ModelError, match="SAELens lets nothing below 0 pass, but layer 0 has"):
        save_transcoder(PerLayerTranscoder(layers), tmp_path / "there", "saelens")


@pytest.mark.parametrize("skip", [False, True])
def test_a_cross_layer_gemma_scope_is_written_as_it_was_read(skip: bool, tmp_path: Path):
    (tmp_path / "set").mkdir()
    GemmaScope2(cross_layer=True, skip=skip).save(tmp_path / "set")
    there = convert(tmp_path / "set", tmp_path / "there", "gemma-scope-2")
    assert_same(load_transcoder(there, lazy=True), load_transcoder(tmp_path / "set"))


def test_conversion_to_an_unknown_format_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="format is 'pickle', expected one of"):
        convert(GOLDEN / "gpt2_plt" / "transcoders", tmp_path / "x", "pickle")


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_stored_in_another_number_format_agree_with_each_other(
    folder: Path, dtype: torch.dtype
):
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        save_file(
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}, file
        )
    found = load_transcoder(folder, lazy=True)
    for index, layer in enumerate(found.layers):
        weights = weights_of(type(found)(found.layers))
        kinds = {value.dtype for key, value in weights.items() if key.startswith(f"{index} ")}
        assert kinds == {layer.W_enc.dtype}
    computed(found, [x.to(found.layers[0].W_enc.dtype) for x in inputs()])
