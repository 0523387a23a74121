"""`tracer train` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from replacement_models.training.loop import Loop
from tests.test_cli import refused, run, succeed
from tests.training_runs import settings
from tracer.training.curves import thinned

SHORT = {"dictionary": {"layers": None, "features": 64}, "run": {"tokens": 4096}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)


def written(**sections: dict[str, object]) -> str:
    """A configuration on disk."""
    given = settings(Path("run"), **{**SHORT, **sections})
    Path("run.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    return "run.yaml"


@pytest.mark.parametrize("count", [0, 1, 60, 61, 119, 1000])
def test_curves_of_long_runs_have_few_points_the_last_among_them(count: int):
    steps = [line["step"] for line in thinned([{"step": at} for at in range(count)])]
    assert min(count, 30) <= len(steps) <= 60
    assert steps[-1:] == [count - 1][:count]
    assert len(set(np.diff(steps).tolist())) <= 1
    assert count > 60 or steps == list(range(count))


def test_a_run_says_what_the_dictionary_is_worth_and_draws_its_curves():
    text = succeed("train", written(), "--set", "dictionary.l0=3", "-o", "other")
    assert "affine alone" in text
    assert "replacement score" in text
    assert text.endswith("Saved other/transcoder. Its curves: other/curves.svg\n")
    assert Path("other/curves.svg").read_text().count("<svg ") == 5
    summary = json.loads(Path("other/summary.json").read_text())
    assert summary["wanted_l0"] == [3.0] * 4
    assert 0 < summary["replaced"]["replacement_score"] < 1


def test_a_run_says_how_many_features_are_left_out():
    lines = succeed("train", written(run=SHORT["run"] | {"drop_below": 3000})).splitlines()
    assert lines[0].split()[-3:] == ["dead", "left", "out"]
    left_out = json.loads(Path("run/summary.json").read_text())["left_out"]
    assert [line.split()[-1] for line in lines if line[:1].isdigit()] == [*map(str, left_out)]
    assert sum(left_out)


def test_the_template_can_be_trained_from():
    Path("my.yaml").write_text(succeed("train", "--template"), encoding="utf-8")
    assert yaml.safe_load(Path("my.yaml").read_text())["dictionary"]["activation"] == "jump_relu"
    assert refused("train", "my.yaml", "--set", "run.batch=0").startswith("run.batch: expected")


def test_mistakes_are_one_line_and_leave_nothing():
    path = written(dictionary={"l0": -1})
    assert refused("train", path) == (
        "run.yaml: dictionary.l0: expected a number or a list of them above 0, got [-1.0]"
    )
    assert refused("train", "none.yaml").startswith("none.yaml: cannot be read as YAML")
    assert refused("train").startswith("CONFIG is missing; --template prints one")
    assert "is not FIELD=VALUE" in refused("train", written(), "--set", "l0")
    assert refused("train", written(), "--set", "l0=3").startswith("l0: no such field")
    assert not Path("run").exists()


def test_an_interrupted_run_says_how_it_goes_on(monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "run", stop)
    found = run("train", written())
    assert found.exit_code == 130
    assert found.stderr == "Error: interrupted; the same command goes on with run\n"
