"""Names of features beside a dictionary."""

import json
from pathlib import Path

import pytest

import tracer
from replacement_models import ModelError, ReplacementModel, save_transcoder
from replacement_models.formats import content_hash
from replacement_models.formats.labels import FILE, read_labels, write_labels
from tests.random_models import PROMPT, language_model, replacement_model, transcoder


def test_names_survive_a_round_trip(tmp_path: Path):
    names = {(2, 11): "a city in Texas", (0, 3): "“naïve” </svg>"}
    write_labels(names, tmp_path)
    assert read_labels(tmp_path) == names


def test_a_folder_without_names_has_none(tmp_path: Path):
    assert read_labels(tmp_path) == {}
    (tmp_path / FILE).write_text(json.dumps({"somebody": "else's file"}))
    assert read_labels(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ('{"format": "tracer-labels", "version": 2, "labels": {}}', "expected version 1"),
        ('{"format": "tracer-labels", "version": 1, "labels": {"x": "y"}}', "not layer/feature"),
        ('{"format": "tracer-labels", "version": 1, "labels": {"0/1": 3}}', "expected a string"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: str, said: str):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ModelError, match=said) as error:
        read_labels(tmp_path)
    assert "\n" not in str(error.value)


def test_a_loaded_dictionary_brings_its_names_into_the_graph(tmp_path: Path):
    active = replacement_model("gpt2").record(PROMPT).features
    at = int((active.position == 3).nonzero()[0])
    layer, feature = int(active.layer[at]), int(active.feature[at])
    folder = save_transcoder(transcoder(), tmp_path / "dictionary")
    write_labels({(layer, feature): "a name"}, folder)
    language_model("gpt2").save_pretrained(tmp_path / "model")
    model = ReplacementModel.load(tmp_path / "model", folder, dtype="float64")
    nodes = tracer.trace(model, PROMPT).nodes.to_pylist()
    labels = {node["id"]: node["label"] for node in nodes if node["kind"] == "feature"}
    assert labels[f"{layer}_{feature}_3"] == f"a name · {PROMPT[3]}"
    assert sum(label.startswith("a name") for label in labels.values()) >= 1


def test_naming_a_feature_makes_no_other_dictionary_of_it(tmp_path: Path):
    folder = save_transcoder(transcoder(), tmp_path / "dictionary")
    before = content_hash(folder)
    write_labels({(0, 1): "a name"}, folder)
    assert content_hash(folder) == before
    (folder / "transcoder.json").write_text((folder / "transcoder.json").read_text() + " ")
    assert content_hash(folder) != before
