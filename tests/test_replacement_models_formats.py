"""Our own format and circuit-tracer's: round trips, lazy rows, and files that must be refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tracer
from replacement_models import (
    BatchTopK,
    CrossLayerTranscoder,
    DenseDecoder,
    JumpReLU,
    ModelError,
    PerLayerTranscoder,
    ReadPoint,
    ReLU,
    ReplacementModel,
    SparseAutoencoder,
    TopK,
    Transcoder,
    TranscoderLayer,
    WritePoint,
    load_transcoder,
    save_transcoder,
)
from replacement_models.formats import content_hash
from replacement_models.formats.storage.tensors import StoredDecoder, TensorFile, runs
from tests.dictionaries import assert_same, computed
from tests.random_models import LAYERS, PROMPT, replacement_model
from tests.random_models import transcoder as random_transcoder
from tracer.features.promoted import usual_scores

FORMATS = ("tracer", "circuit-tracer")
ACTIVATIONS = {
    "relu": lambda features: ReLU(),
    "jump_relu": lambda features: JumpReLU(torch.rand(features)),
    "topk": lambda features: TopK(2),
    "batch_topk": lambda features: BatchTopK(torch.rand(1)),
}
KINDS = {
    "cross_layer": CrossLayerTranscoder,
    "per_layer": PerLayerTranscoder,
    "sae": SparseAutoencoder,
}


def dictionary(
    kind: str = "cross_layer",
    activation: str = "relu",
    skip: bool = False,
    dtype: torch.dtype = torch.float32,
    **points: Any,
) -> Transcoder:
    """Two layers of random weights, d_model 3, 5 features."""
    layers = [
        TranscoderLayer(
            W_enc=torch.randn(5, 3),
            b_enc=torch.randn(5),
            decoder=DenseDecoder(torch.randn(5, 2 - index if kind == "cross_layer" else 1, 3)),
            b_dec=torch.randn(3),
            activation=ACTIVATIONS[activation](5),
            W_skip=torch.randn(3, 3) if skip else None,
        )
        for index in range(2)
    ]
    found = KINDS[kind](layers, model="owner/name", **points)
    return found.to("cpu", dtype)


def holds(format: str, kind: str, activation: str) -> bool:
    """Whether the format has a place for it, unchanged."""
    if format == "tracer":
        return True
    if kind == "cross_layer":
        return activation in ("relu", "jump_relu")
    return kind == "per_layer" and activation != "batch_topk"


EVERY = [
    (format, kind, activation)
    for format in FORMATS
    for kind in sorted(KINDS)
    for activation in sorted(ACTIVATIONS)
    if holds(format, kind, activation)
]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("format", "kind", "activation"), EVERY)
def test_what_is_saved_is_what_is_loaded(
    tmp_path: Path, format: str, kind: str, activation: str, skip: bool, lazy: bool
):
    saved = dictionary(kind, activation, skip)
    folder = save_transcoder(saved, tmp_path / "set", format)
    assert_same(load_transcoder(folder, lazy=lazy), saved)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from(list(ReadPoint)),
    st.sampled_from(list(WritePoint)),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
)
def test_points_and_number_formats_survive(
    tmp_path_factory: pytest.TempPathFactory,
    format: str,
    read: ReadPoint,
    write: WritePoint,
    dtype: torch.dtype,
    lazy: bool,
):
    saved = dictionary("per_layer", "jump_relu", True, dtype, read=read, write=write)
    folder = save_transcoder(saved, tmp_path_factory.mktemp("sets") / "set", format)
    assert_same(load_transcoder(folder, lazy=lazy), saved)


def test_layers_may_differ_in_activation_in_our_format(tmp_path: Path):
    layers = [dictionary("per_layer", name).layers[0] for name in ("topk", "relu", "jump_relu")]
    saved = PerLayerTranscoder(layers)
    assert_same(load_transcoder(save_transcoder(saved, tmp_path / "set")), saved)
    with pytest.raises(ModelError, match=r"one activation .*layer 0 has topk of 2, layer 1 relu"):
        save_transcoder(saved, tmp_path / "other", "circuit-tracer")


def test_circuit_tracer_applies_a_per_layer_skip_transposed_and_a_cross_layer_one_as_it_is(
    tmp_path: Path,
):
    per, across = dictionary("per_layer", skip=True), dictionary("cross_layer", skip=True)
    save_transcoder(per, tmp_path / "per", "circuit-tracer")
    save_transcoder(across, tmp_path / "across", "circuit-tracer")
    stored = load_file(tmp_path / "per" / "layer_1.safetensors")["W_skip"]
    assert torch.equal(stored.T, per.layers[1].W_skip)
    stored = load_file(tmp_path / "across" / "W_skip.safetensors")["W_skip"]
    assert torch.equal(stored[1], across.layers[1].W_skip)


def test_circuit_tracer_files_have_its_keys_and_shapes(tmp_path: Path):
    save_transcoder(dictionary("cross_layer", "jump_relu"), tmp_path / "clt", "circuit-tracer")
    save_transcoder(dictionary("per_layer", "topk"), tmp_path / "plt", "circuit-tracer")
    found = {
        file.relative_to(tmp_path).as_posix(): {
            key: tuple(value.shape) for key, value in load_file(file).items()
        }
        for file in sorted(tmp_path.rglob("*.safetensors"))
    }
    layer = {"W_enc": (5, 3), "b_enc": (5,), "W_dec": (5, 3), "b_dec": (3,)}
    assert found == {
        "clt/W_dec_0.safetensors": {"W_dec_0": (5, 2, 3)},
        "clt/W_dec_1.safetensors": {"W_dec_1": (5, 1, 3)},
        **{
            f"clt/W_enc_{i}.safetensors": {
                f"W_enc_{i}": (5, 3),
                f"b_enc_{i}": (5,),
                f"b_dec_{i}": (3,),
                f"threshold_{i}": (5,),
            }
            for i in (0, 1)
        },
        "plt/layer_0.safetensors": layer,
        "plt/layer_1.safetensors": layer,
    }
    config = yaml.safe_load((tmp_path / "plt" / "config.yaml").read_text())
    assert config == {
        "model_name": "owner/name",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "activation": "topk",
        "k": 2,
    }


def test_batch_topk_is_written_to_circuit_tracer_as_the_jump_relu_it_is(tmp_path: Path):
    saved = dictionary("per_layer", "batch_topk")
    found = load_transcoder(save_transcoder(saved, tmp_path / "set", "circuit-tracer"))
    assert found.layers[0].activation.name == "jump_relu"
    x = list(torch.randn(2, 7, 3))
    for got, expected in zip(computed(found, x), computed(saved, x), strict=True):
        assert torch.equal(torch.stack(got), torch.stack(expected))


@pytest.mark.parametrize(
    ("kind", "activation", "message"),
    [
        ("cross_layer", "topk", "TopK for per-layer transcoders only"),
        ("sae", "relu", "holds transcoders, not sae"),
    ],
)
def test_what_circuit_tracer_cannot_hold_is_refused_and_nothing_is_left(
    tmp_path: Path, kind: str, activation: str, message: str
):
    with pytest.raises(ModelError, match=message):
        save_transcoder(dictionary(kind, activation), tmp_path / "set", "circuit-tracer")
    assert not list(tmp_path.iterdir())


def test_circuit_tracer_has_one_width_for_all_layers(tmp_path: Path):
    found = dictionary("per_layer", "relu")
    layers = [*found.layers, TranscoderLayer.empty(found.layers[0].b_dec, 1)]
    with pytest.raises(ModelError, match="but here are layers of 0, 5"):
        save_transcoder(PerLayerTranscoder(layers), tmp_path / "set", "circuit-tracer")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("format", ["tracer", "gemma-scope-2"])
def test_layers_may_differ_in_width_where_each_has_a_file(tmp_path: Path, format: str, kind: str):
    found = dictionary(kind, "jump_relu")
    first = found.layers[0]
    narrow = replace(
        first,
        W_enc=first.W_enc[:3],
        b_enc=first.b_enc[:3],
        decoder=DenseDecoder(first.decoder.rows(torch.arange(3))),
        activation=JumpReLU(torch.rand(3)),
    )
    saved = KINDS[kind]([narrow, *found.layers[1:]], model="owner/name")
    folder = save_transcoder(saved, tmp_path / "set", format)
    assert_same(load_transcoder(folder), saved)
    if format == "gemma-scope-2" and kind == "per_layer":
        said = [json.loads(one.read_text())["width"] for one in sorted(folder.rglob("*.json"))]
        assert said == [3, 5]


def test_lazy_rows_come_in_the_order_asked_for(tmp_path: Path):
    saved = dictionary("cross_layer")
    lazy = load_transcoder(save_transcoder(saved, tmp_path / "set"), lazy=True)
    for wanted in ([3, 1, 3, 4], [], [0, 1, 2], [4]):
        index = torch.tensor(wanted, dtype=torch.long)
        assert torch.equal(lazy.decoder_rows(0, index), saved.decoder_rows(0, index))
    double = lazy.to("cpu", torch.float64).decoder_rows(0, torch.tensor([2]))
    assert torch.equal(double, saved.decoder_rows(0, torch.tensor([2])).double())


@given(st.lists(st.integers(0, 9), max_size=12))
def test_runs_spell_out_the_features_in_their_order(features: list[int]):
    found = runs(torch.tensor(features, dtype=torch.long))
    assert [feature for run in found for feature in range(*run)] == features


def test_only_the_rows_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_file({"W_dec": torch.arange(24.0).reshape(4, 2, 3)}, tmp_path / "w.safetensors")
    decoder = TensorFile.open(tmp_path / "w.safetensors").decoder("W_dec", lazy=True)
    read: list[Any] = []
    monkeypatch.setattr(
        "replacement_models.formats.storage.tensors.safe_open",
        lambda *a: Watched(safe_open(*a), read),
    )
    rows = decoder.rows(torch.tensor([1, 2]))
    assert rows.tolist() == torch.arange(24.0).reshape(4, 2, 3)[1:3].tolist()
    assert read == [slice(1, 3)]


class Watched:
    """A safetensors file that notes which slices were taken."""

    def __init__(self, file: Any, read: list[Any]) -> None:
        self.file, self.read = file, read

    def __enter__(self) -> "Watched":
        self.file = self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def keys(self) -> list[str]:
        return list(self.file.keys())

    def get_tensor(self, key: str) -> Any:
        self.read.append(key)
        return self.file.get_tensor(key)

    def get_slice(self, key: str) -> "WatchedSlice":
        return WatchedSlice(self.file.get_slice(key), self.read)


class WatchedSlice:
    """A slice of such a file."""

    def __init__(self, stored: Any, read: list[Any]) -> None:
        self.stored, self.read = stored, read

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return self.stored[index]


def with_transcoder(transcoder: Transcoder) -> ReplacementModel:
    host = replacement_model("gpt2").host
    return ReplacementModel.from_huggingface(host.model, None, transcoder)


def traced(transcoder: Transcoder) -> Any:
    model = with_transcoder(transcoder)
    return tracer.trace(model, PROMPT)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["cross_layer", "per_layer"])
def test_a_trace_from_disk_is_the_trace_from_memory_and_reads_active_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, format: str
):
    saved = random_transcoder(kind, skip=True)
    folder = save_transcoder(saved, tmp_path / "set", format)
    expected = traced(load_transcoder(folder, lazy=False))
    model = with_transcoder(load_transcoder(folder, lazy=True))
    usual_scores(model)  # what labels are measured against: some rows, once a model
    read: set[tuple[str, int]] = set()
    real = StoredDecoder.rows

    def noted(self: StoredDecoder, features: torch.Tensor) -> torch.Tensor:
        read.update((self.file.path.name, feature) for feature in features.tolist())
        return real(self, features)

    monkeypatch.setattr(StoredDecoder, "rows", noted)
    found = tracer.trace(model, PROMPT)
    assert found.nodes.equals(expected.nodes)
    assert (found.effect != expected.effect).nnz == 0
    active = with_transcoder(saved).record(PROMPT).features
    fired = set(zip(active.layer.tolist(), active.feature.tolist(), strict=True))
    rows = {(int(Path(name).stem.split("_")[-1]), feature) for name, feature in read}
    assert rows
    assert rows <= fired
    assert len(fired) < LAYERS * saved.features


def test_a_save_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = []

    def failing(tensors: Any, path: Path) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        save_file(tensors, path)

    monkeypatch.setattr("replacement_models.formats.native.save_file", failing)
    with pytest.raises(ModelError, match=r"set: cannot be written .*No space left"):
        save_transcoder(dictionary(), tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(tensors: Any, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("replacement_models.formats.native.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_transcoder(dictionary(), tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_another_is_left_alone(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    save_transcoder(dictionary(), tmp_path / "empty")
    before = sorted(path.name for path in (tmp_path / "empty").iterdir())
    with pytest.raises(ModelError, match="empty: exists and is not an empty folder"):
        save_transcoder(dictionary(), tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="file: exists and is not an empty folder"):
        save_transcoder(dictionary(), tmp_path / "file")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="cannot be written") as error:
        save_transcoder(dictionary(), tmp_path / "file" / "set")
    assert "\n" not in str(error.value)


def test_an_unknown_format_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"format is 'pickle', expected one of \['circuit-tracer'"):
        save_transcoder(dictionary(), tmp_path / "set", "pickle")


def saved_set(folder: Path, format: str, kind: str = "per_layer") -> Path:
    return save_transcoder(dictionary(kind, "jump_relu", skip=True), folder / "set", format)


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused, eagerly and lazily alike."""
    lines = []
    for lazy in (False, True):
        with pytest.raises(ModelError) as error:
            load_transcoder(folder, lazy=lazy)
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    return lines[0]


FILES = {
    ("tracer", "per_layer"): "layer_1.safetensors",
    ("tracer", "cross_layer"): "layer_1.safetensors",
    ("circuit-tracer", "per_layer"): "layer_0.safetensors",
    ("circuit-tracer", "cross_layer"): "W_dec_1.safetensors",
}
every_set = pytest.mark.parametrize(("format", "kind"), FILES)


@every_set
def test_a_missing_file_is_named(tmp_path: Path, format: str, kind: str):
    folder = saved_set(tmp_path, format, kind)
    (folder / FILES[format, kind]).unlink()
    assert f"{FILES[format, kind]}: no such file; the folder is incomplete" in refusal(folder)


@every_set
@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_a_torn_file_is_named(tmp_path: Path, format: str, kind: str, keep: int):
    folder = saved_set(tmp_path, format, kind)
    file = folder / FILES[format, kind]
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file.name}: cannot be read as safetensors" in refusal(folder)


@every_set
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, format: str, kind: str):
    folder = saved_set(tmp_path, format, kind)
    (folder / FILES[format, kind]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 9)
    assert f"{FILES[format, kind]}: cannot be read as safetensors" in refusal(folder)


@every_set
def test_a_tensor_that_is_missing_is_named(tmp_path: Path, format: str, kind: str):
    folder = saved_set(tmp_path, format, kind)
    change(folder / FILES[format, kind], lambda tensors: {"other": next(iter(tensors.values()))})
    assert "'other'" in refusal(folder)


@every_set
def test_a_tensor_nobody_reads_is_refused_rather_than_dropped(
    tmp_path: Path, format: str, kind: str
):
    folder = saved_set(tmp_path, format, kind)
    change(folder / FILES[format, kind], lambda tensors: tensors | {"gate": torch.ones(5)})
    assert "tensor 'gate' is not known in this format" in refusal(folder)


def change(file: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file({k: v.contiguous() for k, v in edit(load_file(file)).items()}, file)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("W_enc", (5,), "W_enc has shape (5,)"),
        ("b_enc", (4,), "b_enc has shape (4,), expected (5,)"),
        ("b_dec", (1, 3), "b_dec has shape (1, 3), expected (3,)"),
        ("W_dec", (4, 3), "W_dec has shape (4, 1, 3), expected (5, 1, 3)"),
        ("W_dec", (3,), "W_dec has shape (3,), expected (features, targets, d_model)"),
        ("W_skip", (3, 4), "expected (3, 3)"),
    ],
)
def test_a_wrong_shape_is_named_with_the_folder(
    tmp_path: Path, format: str, key: str, shape: tuple[int, ...], message: str
):
    folder = saved_set(tmp_path, format)
    change(folder / "layer_0.safetensors", lambda tensors: tensors | {key: torch.ones(shape)})
    line = refusal(folder)
    assert message in line
    assert str(folder) in line


def test_whole_numbers_are_no_weights(tmp_path: Path):
    folder = saved_set(tmp_path, "tracer")
    change(
        folder / "layer_0.safetensors",
        lambda tensors: tensors | {"b_enc": torch.ones(5, dtype=torch.int64)},
    )
    assert "b_enc holds torch.int64, expected weights" in refusal(folder)


def edit_json(folder: Path, **changes: Any) -> None:
    path = folder / "transcoder.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format is 'other', expected one of ['tracer-transcoder']"),
        ({"version": 2}, "version is 2, expected one of [1]"),
        ({"kind": "crosscoder"}, "kind is 'crosscoder', expected one of"),
        ({"read": "attention"}, "read is 'attention', expected one of"),
        ({"write": "gone"}, "write is None, expected one of"),
        ({"layers": 0}, "layers is 0, expected a count"),
        ({"layers": "2"}, "layers is '2', expected a count"),
        ({"layers": True}, "layers is True, expected a count"),
        ({"layers": 3}, "layer_2.safetensors: no such file"),
        ({"features": 6}, "features is 6, but the weights have 5"),
        ({"d_model": 4}, "d_model is 4, but the weights have 3"),
        ({"scale": 2.0}, "field 'scale' is not known"),
        ({"activation": "gone"}, "activation is None, expected relu"),
        ({"activation": {"name": "gelu"}}, "expected relu, jump_relu, batch_topk"),
        ({"activation": {"name": "relu"}}, "has a threshold, but transcoder.json says activation"),
        ({"activation": [{"name": "jump_relu"}]}, "activation lists 1 layers, expected 2"),
        ({"activation": {"name": "batch_topk"}}, "threshold"),
    ],
)
def test_a_field_of_ours_that_is_not_understood_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    folder = saved_set(tmp_path, "tracer")
    edit_json(folder, **changes)
    assert message in refusal(folder)


def test_topk_without_a_whole_k_is_refused(tmp_path: Path):
    folder = save_transcoder(dictionary("per_layer", "topk"), tmp_path / "set")
    for k in (None, "2", 2.0, True):
        edit_json(folder, activation={"name": "topk", "k": k})
        assert "topk with a whole number k" in refusal(folder)
    edit_json(folder, activation={"name": "topk", "k": 6})
    assert "k is 6, but there are only 5 features" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00"])
@pytest.mark.parametrize(
    ("format", "file"), [("tracer", "transcoder.json"), ("circuit-tracer", "config.yaml")]
)
def test_a_configuration_that_is_none_is_named(tmp_path: Path, format: str, file: str, text: str):
    folder = saved_set(tmp_path, format)
    (folder / file).write_text(text)
    assert str(folder / file) in refusal(folder)


def edit_yaml(folder: Path, **changes: Any) -> None:
    path = folder / "config.yaml"
    config = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_kind": "lorsa"}, "model_kind is 'lorsa', expected 'transcoder_set'"),
        ({"feature_input_hook": "hook_attn_in"}, "feature_input_hook is 'hook_attn_in', expected"),
        ({"feature_output_hook": None}, "feature_output_hook is None, expected"),
        ({"activation": "gelu"}, "activation is 'gelu', expected relu"),
        ({"activation": "relu"}, "has a threshold, but config.yaml says activation relu"),
        ({"transcoders": ["../other.safetensors"]}, "lies outside the folder"),
        ({"transcoders": ["/etc/passwd"]}, "lies outside the folder"),
        ({"transcoders": ["hf://owner"]}, "'hf://owner'"),
        ({"transcoders": ["hf://owner/name/../../x"]}, "'hf://owner/name/../../x'"),
        ({"transcoders": ["layer_9.safetensors"]}, "layer_9.safetensors: no such file"),
    ],
)
def test_a_field_of_circuit_tracers_that_is_not_understood_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    folder = saved_set(tmp_path, "circuit-tracer")
    edit_yaml(folder, **changes)
    assert message in refusal(folder)


def test_circuit_tracers_topk_needs_its_k_and_jump_relu_its_threshold(tmp_path: Path):
    folder = save_transcoder(dictionary("per_layer", "topk"), tmp_path / "set", "circuit-tracer")
    edit_yaml(folder, k=None)
    assert "activation topk needs k, got None" in refusal(folder)
    edit_yaml(folder, activation="jump_relu")
    assert "activation jump_relu needs a threshold, found none" in refusal(folder)


def test_a_cross_layer_skip_of_the_wrong_layer_count_is_named(tmp_path: Path):
    folder = saved_set(tmp_path, "circuit-tracer", "cross_layer")
    save_file({"W_skip": torch.ones(3, 3, 3)}, folder / "W_skip.safetensors")
    assert "W_skip has shape (3, 3, 3), expected (2, d_model, d_model)" in refusal(folder)


def test_listed_files_give_the_layer_order(tmp_path: Path):
    saved = dictionary("per_layer")
    folder = save_transcoder(saved, tmp_path / "set", "circuit-tracer")
    (folder / "deep").mkdir()
    (folder / "layer_0.safetensors").rename(folder / "deep" / "a.safetensors")
    edit_yaml(folder, transcoders=["deep/a.safetensors", "layer_1.safetensors"])
    assert_same(load_transcoder(folder), saved)


def test_a_listed_file_may_be_a_link_as_in_the_hubs_cache(tmp_path: Path):
    saved = dictionary("per_layer")
    folder = save_transcoder(saved, tmp_path / "set", "circuit-tracer")
    for index in (0, 1):
        (folder / f"layer_{index}.safetensors").rename(tmp_path / f"blob{index}")
        (folder / f"layer_{index}.safetensors").symlink_to(tmp_path / f"blob{index}")
    edit_yaml(folder, transcoders=["layer_0.safetensors", "layer_1.safetensors"])
    assert_same(load_transcoder(folder), saved)


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert "holds no transcoder in a known format" in refusal(tmp_path)


def test_a_file_or_nothing_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert "is a file, expected a folder" in refusal(tmp_path / "file")
    assert "no such folder" in refusal(tmp_path / "nothing")


def test_the_hash_is_of_names_and_bytes_wherever_they_lie(tmp_path: Path):
    saved = dictionary()
    first = save_transcoder(saved, tmp_path / "a" / "set")
    second = save_transcoder(saved, tmp_path / "b" / "other")
    assert content_hash(first) == content_hash(second)
    (second / "README.md").write_text("not part of it")
    (second / ".cache").mkdir()
    (second / ".cache" / "note.json").write_text("{}")
    assert content_hash(first) == content_hash(second)
    file = second / "layer_1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert content_hash(first) != content_hash(second)


def test_a_link_named_by_its_hash_is_not_read_again(tmp_path: Path):
    plain = save_transcoder(dictionary(), tmp_path / "plain")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in plain.iterdir():
        blob = tmp_path / sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (linked / file.name).symlink_to(blob)
    assert content_hash(linked) == content_hash(plain)


def test_large_sets_stay_on_disk_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = save_transcoder(dictionary(), tmp_path / "set")
    assert isinstance(load_transcoder(folder).layers[0].decoder, DenseDecoder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setattr("replacement_models.formats.files.LAZY_ABOVE", size - 1)
    assert isinstance(load_transcoder(folder).layers[0].decoder, StoredDecoder)
    assert isinstance(load_transcoder(folder, lazy=False).layers[0].decoder, DenseDecoder)


@pytest.mark.parametrize("kind", ["per_layer", "cross_layer"])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_dictionary_at_some_layers_comes_back(tmp_path: Path, kind: str, lazy: bool):
    partly = random_transcoder(kind, at=(0, 2))
    save_transcoder(partly, tmp_path / "set")
    found = load_transcoder(tmp_path / "set", lazy)
    assert found.present == (0, 2)
    assert_same(found, partly)


def test_a_format_that_must_have_every_layer_says_so(tmp_path: Path):
    partly = random_transcoder("per_layer", activation="jump_relu", at=(0, 2))
    with pytest.raises(ModelError, match="no place for a layer without a dictionary, as layer 1"):
        save_transcoder(partly, tmp_path / "set", "gemma-scope-2")
    assert not (tmp_path / "set").exists()


def test_layers_of_several_dictionaries_are_no_files_to_hold(tmp_path: Path):
    mixed = replacement_model("gpt2", at=(1,), elsewhere="neurons").transcoder
    for format in ("tracer", "saelens"):
        with pytest.raises(ModelError, match="own neurons are no file's to hold"):
            save_transcoder(mixed, tmp_path / "set", format)
