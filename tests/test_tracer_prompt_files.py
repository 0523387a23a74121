"""Files of prompts: four kinds, and what is wrong with a line, or with all of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tracer import Difference, TraceError
from tracer.datasets import prompt_files
from tracer.datasets.prompt_files import read_prompts
from tracer.datasets.prompts import Prompt, column_types, digest, prompts_of

ROWS = [
    {"prompt": "The capital of Ohio is", "language": "en", "hops": 1},
    {"prompt": 'Le "contraire", de', "target": " froid", "minus": " chaud", "language": "fr"},
]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_is_a_prompt_a_line_and_blank_lines_are_none(tmp_path: Path):
    path = written(tmp_path, "a.txt", "\ufeffone\r\n\n  two \n\t\nthree")
    assert [one.given for one in read_prompts(path)] == ["one", "  two ", "three"]
    assert read_prompts(str(path)) == prompts_of(["one", "  two ", "three"])


def test_the_same_rows_are_the_same_prompts_in_every_kind(tmp_path: Path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    found = read_prompts(written(tmp_path, "a.jsonl", lines))
    assert found == prompts_of(ROWS)
    assert found[1].targets == (Difference(" froid", " chaud"),)
    assert [one.own for one in found] == [
        {"language": "en", "hops": 1},
        {"language": "fr", "hops": None},
    ]
    assert column_types(found) == {"language": "string", "hops": "int64"}
    parquet.write_table(pa.Table.from_pylist(_even()), tmp_path / "a.parquet")
    assert read_prompts(tmp_path / "a.parquet") == found
    cells = "prompt,target,minus,language\nThe capital of Ohio is,,,en\n"
    cells += '"Le ""contraire"", de", froid, chaud,fr\n'
    table = read_prompts(written(tmp_path, "a.csv", cells))
    assert [(one.given, one.targets) for one in table] == [
        (one.given, one.targets) for one in found
    ]
    tabs = cells.replace(",target,minus,", "\ttarget\tminus\t").replace("is,,,en", "is\t\t\ten")
    tabs = tabs.replace(", froid, chaud,", "\t froid\t chaud\t")
    assert read_prompts(written(tmp_path, "a.tsv", tabs)) == table


def _even() -> list[dict[str, Any]]:
    names = {name for row in ROWS for name in row}
    return [{name: row.get(name) for name in sorted(names)} for row in ROWS]


def wrong(prompts: list[Prompt]) -> list[str | None]:
    return [one.wrong for one in prompts]


def test_a_bad_line_is_one_prompt_with_the_place_and_the_reason(tmp_path: Path):
    lines = [
        b'{"prompt": "good"}',
        b"{",
        b'"just text"',
        b'{"prompt": 7}',
        b'{"prompt": "a", "targets": {"x": 1}}',
        b"\xff\xfe",
        b'{"prompt": "nul \\u0000 and \\ud800"}',
        b"[" * 100_000,
        b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "big", "n": 1' + b"0" * 30 + b"}",
        b"\0\0\0",
        b"3",
        b'{"prompt": "x' + b"y" * (1 << 22) + b'"}',
        b'{"prompt": "last"}',
    ]
    found = read_prompts(written(tmp_path, "a.jsonl", b"\n".join(lines)))
    assert len(found) == len(lines)
    told = wrong(found)
    good = [0, 2, 6, 9, 13]
    assert [at for at, reason in enumerate(told) if reason is None] == good
    for at, reason in enumerate(told):
        if at not in good:
            assert reason is not None
            assert reason.startswith(f"line {at + 1}: ")
            assert reason.isprintable()
    assert found[13].given == "last"
    assert found[6].text is None
    assert "has more than" in str(told[12])
    assert found[9].own["n"] == "1" + "0" * 30


def test_a_line_that_is_too_long_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompt_files, "LONGEST", 16)
    path = written(tmp_path, "a.txt", "short\n" + "x" * 100 + "\nalso short\n" + "y" * 16)
    assert [one.given for one in read_prompts(path)] == ["short", None, "also short", None]


def test_a_bad_row_of_csv_is_one_prompt(tmp_path: Path):
    cells = (
        b'prompt,n\ngood,1\ntoo,many,cells\nfew\n\xff,2\n,3\n"' + b"z" * 200_000 + b'",4\nend,5\n'
    )
    found = read_prompts(written(tmp_path, "a.csv", cells))
    assert [one.given for one in found][:1] == ["good"]
    assert found[-1].given == "end"
    told = wrong(found)
    assert told[1] == "line 3: has 3 cells, expected 2"
    assert told[2] == "line 4: has 1 cells, expected 2"
    assert str(told[3]).startswith("line 5: is not UTF-8")
    assert found[4].given == ""
    assert "field larger than field limit" in str(told[5])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no prompt"),
        ("a.jsonl", b"\n\n", "holds no prompt"),
        ("a.csv", b"", "has no line with names of columns"),
        ("a.csv", b"text,n\na,1\n", "has the columns text, n, expected names that differ"),
        ("a.csv", b"prompt,prompt\na,1\n", "expected names that differ"),
        ("a.csv", b"prompt,status\na,1\n", "'status' is one of the dataset's own"),
        ("a.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, said: str
):
    with pytest.raises(TraceError, match=f"^[^\n]*{name}: [^\n]*{said}[^\n]*$"):
        read_prompts(written(tmp_path, name, content))


def test_parquet_without_prompts_is_refused_and_its_types_are_taken(tmp_path: Path):
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(TraceError, match="has the columns text, expected"):
        read_prompts(tmp_path / "a.parquet")
    table = pa.table(
        {
            "tokens": pa.array([[1, 2], None, [3]], pa.list_(pa.int32())),
            "when": pa.array([0, 1, 2], pa.timestamp("s")),
            "score": [0.5, float("nan"), None],
            "targets": pa.array([["a"], None, None]),
        }
    )
    parquet.write_table(table, tmp_path / "b.parquet")
    found = read_prompts(tmp_path / "b.parquet")
    assert [one.given for one in found] == [(1, 2), None, (3,)]
    assert wrong(found) == [None, "row 2: expected prompt or tokens, got neither", None]
    assert found[0].targets == ("a",)
    assert column_types(found) == {"when": "string", "score": "double"}
    assert [one.own["score"] for one in found] == [0.5, None, None]


def test_what_differs_has_another_digest():
    some = [["a"], ["b"], [{"prompt": "a", "x": 1}], [{"prompt": "a", "x": 2}], [[1, 2]], [[1, 3]]]
    some += [[{"prompt": "a", "target": "b"}], [{"prompt": "a", "target": "c"}], ["a", "a"]]
    found = {digest(prompts_of(one)) for one in some}
    assert len(found) == len(some)
    assert digest(prompts_of(["a"])) == digest(prompts_of([{"prompt": "a"}]))
