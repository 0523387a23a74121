"""`tracer features`, as a user meets it."""

import json
from pathlib import Path

import pytest

import tracer
from tests.test_cli import GOLDEN, SMALL, python_defaults, refused, run, succeed

IDS = "\n".join(
    f'{{"text": [{", ".join(str(3 + (i * k) % 36) for k in range(12))}]}}' for i in (1, 7, 11)
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def built(tmp_path: Path) -> str:
    """A store of a small model over a few token ids."""
    (tmp_path / "ids.jsonl").write_text(IDS, encoding="utf-8")
    said = succeed(
        *("features", "build", "--corpus", "ids.jsonl", "-o", "s", "--context", "8"), *SMALL
    )
    assert "Saved s: 3" in said  # 36 tokens, less the first of each row
    return "s"


def test_build_show_search_and_a_page(built: str, tmp_path: Path):
    shown = succeed("features", "show", "0/1", "--store", built, "-o", "page.html")
    assert shown.startswith("feature\t0/1\n")
    assert "strongest examples" in shown
    assert "Saved page.html" in shown
    assert "default-src 'none'" in (tmp_path / "page.html").read_text(encoding="utf-8")
    store = tracer.FeatureStore.load(built)
    token = store[0, 1].promoted[0]
    found = succeed("features", "search", token, "--by", "promoted", "--store", built)
    assert "0/1\t" in found
    assert succeed("features", "search", "nowhere", "--store", built) == "no feature matches\n"
    assert "0/1" not in succeed("features", "search", "0/1", "--by", "similar", "--store", built)


def test_label_measures_and_show_says_so(built: str, tmp_path: Path):
    lines = [json.dumps({"text": [3 + (i * k) % 36 for k in range(12)]}) for i in range(1, 60)]
    (tmp_path / "more.jsonl").write_text("\n".join(lines), encoding="utf-8")
    held = json.dumps({"some": tracer.FeatureStore.load(built)[0, 1].promoted[:2]})
    (tmp_path / "classes.json").write_text(held, encoding="utf-8")
    said = succeed(
        *("features", "label", built, "--corpus", "more.jsonl", "--classes", "classes.json"), *SMALL
    )
    assert "true labels\t" in said
    shown = [row for row in tracer.FeatureStore.load(built).labels.rows.values() if row["shown"]]
    best = f"{shown[0]['layer']}/{shown[0]['feature']}"
    assert "F1 " in succeed("features", "show", best, "--store", built)
    wrong = ("features", "label", built, "--corpus", "more.jsonl", *SMALL)
    assert "need each other" in refused(*wrong, "--endpoint", "http://127.0.0.1:9")
    (tmp_path / "classes.json").write_text("[]", encoding="utf-8")
    assert "expected words by class" in refused(*wrong, "--classes", "classes.json")
    assert "'x' is not L/F" in refused(*wrong, "--features", "x")
    assert "there is no feature 0/9999" in refused(*wrong, "--features", "0/9999")


def test_differ_lists_features_of_the_first_prompt():
    from click.testing import CliRunner

    from tracer.commands import main

    found = CliRunner().invoke(
        main,
        ["features", "differ", "The opposite of hot is", "The opposite of day is", "--limit", "3"],
    )
    assert found.exit_code == 0, found.output
    assert '" hot"' in found.stdout
    assert found.stdout.count("\n") == 5  # a head, three features and an empty line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "five", "--store", "none"], "'five' is not L/F, as in 2/311"),
        (["show", "0/1", "--store", "none"], "none: holds no feature store"),
        (["show", "0/1", "-o", "page.pdf"], "cannot write page.pdf: expected a suffix of .html"),
        (["search", "x", "--store", "none"], "none: holds no feature store"),
        (["search", "x", "--by", "colour"], "Invalid value for '--by'"),
        (["build", "-o", "s"], "Missing option '--corpus'"),
        (["build", "--corpus", "none", "-o", "s", *SMALL], "none: there is no such corpus"),
        (["build", "--corpus", "x", "-o", str(GOLDEN), *SMALL], "it exists; choose another name"),
        (["build", "--corpus", "x", "-o", "s", "--model", "m"], "needs --transcoders"),
        (["nothing"], "No such command 'nothing'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, tmp_path: Path):
    assert said in refused("features", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_is_named_by_its_number(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text(f"{IDS}\nnot json\n", encoding="utf-8")
    said = refused("features", "build", "--corpus", "x.jsonl", "-o", "s", *SMALL)
    assert "x.jsonl: line 4 is no JSON" in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_feature_that_is_not_there_is_one_line(built: str):
    assert "layer 9 has no features" in refused("features", "show", "9/1", "--store", built)
    assert "is not in layer 0" in refused("features", "show", "0/99999", "--store", built)


def test_without_a_command_the_group_shows_its_help():
    result = run("features")
    assert "Usage:" in result.output
    assert "build" in result.output


def test_defaults_of_labelling_are_those_of_python():
    from tracer.commands.features import label

    shown = label.make_context("label", ["s", "--corpus", "x"]).params
    expected = python_defaults(tracer.FeatureStore.label)
    shared = {name for name in expected if name in shown}
    assert {name: shown[name] for name in shared} == {name: expected[name] for name in shared}
    assert {"held_out", "outside", "classes", "features", "max_tokens", "lines"} <= shared


def test_defaults_are_those_of_python():
    from tracer.commands.features import build

    shown = build.make_context("build", ["--corpus", "x", "-o", "x"]).params
    expected = python_defaults(tracer.FeatureStore.build)
    assert {name: shown[name] for name in expected if name in shown} == {
        name: value for name, value in expected.items() if name in shown
    }
    assert {"context", "examples", "neighbours", "alone", "shard"} <= {*shown}


def test_a_store_is_exported_for_both_front_ends(built: str, tmp_path: Path):
    succeed("features", "export", built, "-o", "json", "--features", "0/1,1/0")
    assert sorted(path.name for path in (tmp_path / "json").iterdir()) == ["1.json", "2.json"]
    said = succeed("features", "export", built, "-o", "features", "--to", "circuit-tracer")
    assert said == "Saved features\n"
    assert (tmp_path / "features" / "index.json.gz").is_file()
    assert "json: exists" in refused("features", "export", built, "-o", "json")
    wrong = ("features", "export", built, "-o", "x", "--to", "circuit-tracer", "--features", "0/1")
    assert "reads whole layers" in refused(*wrong)
    assert "is not L/F" in refused("features", "export", built, "-o", "x", "--features", "0/1,x")
    assert not (tmp_path / "x").exists()
