"""What `tracer heads` prints of a model's heads."""

from pathlib import Path

import pytest

from tracer.commands.heads import KINDS, plot, print_composition, print_scores


def row(head: int, **known: float) -> dict[str, float | None]:
    return {"layer": 0, "head": head, **dict.fromkeys(KINDS), **known}


ROWS = [
    row(0, **{KINDS[0]: 0.25}),
    row(1, **{KINDS[0]: 0.125, KINDS[-1]: 0.75}),
    row(2, **{KINDS[1]: 0.5}),
    row(3),
]


def test_heads_come_by_the_highest_of_their_scores(capsys: pytest.CaptureFixture[str]):
    print_scores("small", ROWS, 3)
    head, *lines = capsys.readouterr().out.splitlines()
    assert "head of small" in head
    assert [line.split()[0] for line in lines if line.startswith("0.")] == ["0.1", "0.2", "0.0"]
    assert lines[0].split()[1:] == ["0.12", *["-"] * (len(KINDS) - 2), "0.75"]


def test_pairs_of_heads_say_which_reads_what_of_which(capsys: pytest.CaptureFixture[str]):
    pair = {"from_layer": 0, "from_head": 3, "to_layer": 2, "to_head": 1, "score": 0.5}
    print_composition([{**pair, "kind": kind} for kind in "qkv"], 2)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split() for line in lines if line] == [
        ["0.3", "→", "2.1", "query", "0.5"],
        ["0.3", "→", "2.1", "key", "0.5"],
    ]


def test_the_plot_has_the_highest_score_of_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[dict[str, list[float | None]]] = []

    def lines(title: str, axis: object, words: str, known: dict[str, list[float | None]]) -> str:
        told.append(known)
        return "a picture"

    monkeypatch.setattr("graphs.pictures.charts.lines", lines)
    plot(tmp_path / "heads.svg", [("first", ROWS), ("second", ROWS[:1])])
    first, second = (kind.replace("_", " ") for kind in KINDS[:2])
    assert told[0][first] == [0.25, 0.25]
    assert told[0][second] == [0.5, None]
    assert (tmp_path / "heads.svg").read_text() == "a picture"
