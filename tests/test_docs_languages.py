"""The page of languages says what is found."""

from pathlib import Path

import pytest

from docs.fill_languages import FORMS, PAGE, fresh, prompts
from tests.test_docs_queries import NUMBER


def test_every_table_and_every_sentence_on_the_page_is_what_is_found(tmp_path: Path):
    """The same words, numbers within rounding."""
    pytest.importorskip("sklearn")
    asked, written = fresh(str(tmp_path)), PAGE.read_text(encoding="utf-8")
    assert NUMBER.sub("#", asked) == NUMBER.sub("#", written), "python -m docs.fill_languages"
    numbers = [[float(one) for one in NUMBER.findall(text)] for text in (asked, written)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)


def test_every_meaning_is_asked_in_every_language():
    asked = prompts()
    assert len(asked) == len({(one["language"], one["meaning"]) for one in asked})
    meanings = {one["meaning"] for one in asked}
    assert len(asked) == len(FORMS) * len(meanings)
    hot = [one["prompt"] for one in asked if one["meaning"] == "hot"]
    assert "das Gegenteil von heiß ist" in hot
    assert "lo contrario de caliente es" in hot
