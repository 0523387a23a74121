"""The page of queries says what DuckDB answers."""

import re
from pathlib import Path

import pytest

from docs.fill_queries import PAGE, QUESTIONS, fresh

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def test_every_table_and_every_sentence_on_the_page_is_what_the_queries_give(tmp_path: Path):
    """The same words, numbers within rounding."""
    asked, written = fresh(str(tmp_path)), PAGE.read_text(encoding="utf-8")
    assert NUMBER.sub("#", asked) == NUMBER.sub("#", written), "python -m docs.fill_queries"
    numbers = [[float(one) for one in NUMBER.findall(text)] for text in (asked, written)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.002)
    assert written.count("\n## ") == len(QUESTIONS) == 10
    assert all(question.sql in written for question in QUESTIONS)
