"""The page for agents says what the calls answer."""

import re
from pathlib import Path

import pytest

from docs.fill_agents import PAGE, fresh

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def test_every_answer_and_every_sentence_on_the_page_is_what_the_calls_give(tmp_path: Path):
    """As the README's output: the same words, numbers within rounding."""
    asked, written = fresh(str(tmp_path)), PAGE.read_text(encoding="utf-8")
    assert NUMBER.sub("#", asked) == NUMBER.sub("#", written), "python -m docs.fill_agents"
    numbers = [[float(one) for one in NUMBER.findall(text)] for text in (asked, written)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.002)
    assert len(re.findall(r"^\*\*\d+\.\*\* `\w+`", written, re.MULTILINE)) == 10
