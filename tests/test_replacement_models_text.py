"""Corpora: what is read, in which order, and what is refused in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from replacement_models import ModelError
from replacement_models.text.documents import documents
from replacement_models.text.packing import FILL, Packed, pack
from tests.random_models import replacement_model
from tracer.features.settings import Settings

SMALL = Settings(context=4, window=4)


def written(folder: Path) -> Path:
    """A folder with a file of every kind."""
    (folder / "b").mkdir()
    (folder / "b" / "one.txt").write_text("first line\nsecond line\n", encoding="utf-8")
    (folder / "a.jsonl").write_text('{"text": "ä"}\n\n"bare"\n{"text": [3, 4]}\n', encoding="utf-8")
    parquet.write_table(pa.table({"text": ["p", None, "", "q"]}), folder / "c.parquet")
    (folder / ".hidden.txt").write_text("no", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89")
    return folder


def test_a_folder_is_read_by_name_and_empty_documents_are_left_out(tmp_path: Path):
    found = list(documents(written(tmp_path)))
    assert found == ["ä", "bare", [3, 4], "first line\nsecond line\n", "p", "q"]


def test_of_a_table_the_column_that_is_asked_for_is_read_wherever_it_stands(tmp_path: Path):
    held = {"title": ["no", "nor"], "text": ["p", "q"], "body": ["b", None]}
    parquet.write_table(pa.table(held), tmp_path / "x.parquet")
    assert list(documents(tmp_path / "x.parquet")) == ["p", "q"]
    assert list(documents(tmp_path / "x.parquet", "body")) == ["b"]


def test_lines_of_plain_text_are_documents_where_asked(tmp_path: Path):
    file = tmp_path / "prompts"
    file.write_text("one two\n\nthree\n", encoding="utf-8")
    assert list(documents(file, lines=True)) == ["one two", "three"]
    assert list(documents(str(file))) == ["one two\n\nthree\n"]


def test_a_long_text_is_cut_at_the_end_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("replacement_models.text.documents.LONGEST", 10)
    (tmp_path / "long.txt").write_text("123456\n123456\n12\n", encoding="utf-8")
    assert list(documents(tmp_path / "long.txt")) == ["123456\n123456\n", "12\n"]


def bad_utf8(folder: Path) -> Path:
    (folder / "x.txt").write_bytes(b"good\nbad \xff\n")
    return folder / "x.txt"


def broken_json(folder: Path) -> Path:
    (folder / "x.jsonl").write_text('{"text": "good"}\n{"text": \n', encoding="utf-8")
    return folder / "x.jsonl"


def other_key(folder: Path) -> Path:
    (folder / "x.jsonl").write_text(json.dumps({"body": "good"}), encoding="utf-8")
    return folder / "x.jsonl"


def no_parquet(folder: Path) -> Path:
    (folder / "x.parquet").write_bytes(b"PAR1 nothing")
    return folder / "x.parquet"


def other_column(folder: Path) -> Path:
    parquet.write_table(pa.table({"body": ["x"]}), folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "none", "none: there is no such corpus"),
        (lambda folder: folder, "holds no corpus; expected files in .txt, .md, .jsonl, .parquet"),
        (bad_utf8, "x.txt: line 2 is not UTF-8"),
        (broken_json, "x.jsonl: line 2 is no JSON"),
        (other_key, "line 1: expected text or a list of token ids in 'text', got None; it has 'b"),
        (no_parquet, "x.parquet: cannot be read as Parquet"),
        (other_column, "has no column 'text'; it has 'body'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(
    make: Callable[[Path], Path], said: str, tmp_path: Path
):
    with pytest.raises(ModelError) as refused:
        list(documents(make(tmp_path)))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_data_set_of_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModelError, match="need the package datasets: pip install"):
        list(documents("hf:owner/name"))


def test_a_data_set_of_the_hub_is_streamed_where_its_package_is(monkeypatch: pytest.MonkeyPatch):
    fake, asked = ModuleType("datasets"), []

    def load_dataset(name: str, config: str | None, **options: Any) -> list[dict[str, str]]:
        asked.append((name, config, options))
        return [{"body": "one"}, {"body": "two"}]

    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert list(documents("hf:owner/name:small@test", field="body")) == ["one", "two"]
    assert asked == [("owner/name", "small", {"split": "test", "streaming": True})]


def rows_of(tmp_path: Path, texts: list[list[int]], **settings: Any) -> list[list[int]]:
    """Rows of 4 tokens; the random models' BOS is 1 and their EOS 2."""
    chosen = Settings(context=4, window=4, **settings)
    packed: Packed = pack(replacement_model(), texts, chosen, tmp_path / "rows.arrow")
    found: list[list[int]] = packed.tokens.tolist()
    return found


def test_rows_begin_with_bos_and_documents_are_parted(tmp_path: Path):
    texts = [[5, 6], [7], [8, 9, 10, 11]]
    assert rows_of(tmp_path, texts) == [[1, 5, 6, 2], [1, 7, 2, 8], [1, 9, 10, 11]]
    apart = [[1, 5, 6, FILL], [1, 7, FILL, FILL], [1, 8, 9, 10], [1, 11, FILL, FILL]]
    assert rows_of(tmp_path, texts, alone=True) == apart


@pytest.mark.parametrize("alone", [False, True])
def test_no_more_tokens_are_read_than_wanted(alone: bool, tmp_path: Path):
    found = rows_of(tmp_path, [[5, 6, 7, 8, 9], [10, 11]], max_tokens=4, alone=alone)
    assert found == [[1, 5, 6, 7], [1, 8, FILL, FILL]]


def test_a_fingerprint_is_of_tokens_and_not_of_files(tmp_path: Path):
    model = replacement_model()
    packed = [
        pack(model, texts, SMALL, tmp_path / f"{number}.arrow").fingerprint
        for number, texts in enumerate(([[5, 6], [7]], [(5, 6), (7,)], [[5, 6, 7]]))
    ]
    assert packed[0] == packed[1] != packed[2]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "the corpus holds no token"),
        ([[5], [29]], "token id 29, expected 0 to 28"),
        (["text"], "this model has no tokenizer"),
    ],
)
def test_a_corpus_that_does_not_fit_the_model_is_refused(
    texts: list[Any], said: str, tmp_path: Path
):
    with pytest.raises(ModelError, match=said):
        pack(replacement_model(), texts, SMALL, tmp_path / "rows.arrow")
    assert not (tmp_path / "rows.arrow").exists()
