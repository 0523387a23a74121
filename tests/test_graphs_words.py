"""Text for people: whatever a token holds, it reads and does no harm."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs import words


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Dallas", "Dallas"),
        ("<bos>", "<bos>"),
        (" ", "␣"),
        ("", "∅"),
        ("\n\n", "⏎⏎"),
        (" \t", "⇥"),
        ("a\u202eb", r"a\u202eb"),
        ("\x1b[31m", "␛[31m"),
        ("\x1b]0;x\x07", "␛]0;x␇"),
        ("\x00\x7f", "␀␡"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("a\u2066b\u2069", r"a\u2066b\u2069"),
        ("\ufeffa\u200bb\xad", r"\ufeffa\u200bb\xad"),
        ("\u2028\ud800\uffff", r"\u2028\ud800\uffff"),
        ("\U000e0041\u3164\u034f", r"\U000e0041\u3164\u034f"),
        ("pass\u200dword\u200c", r"pass\u200dword\u200c"),
        ("می\u200cخ", "می\u200cخ"),
        ("क्\u200dष", "क्\u200dष"),
        ("e\u0301 ไทย ཀྵ", "e\u0301 ไทย ཀྵ"),
        ("❤\ufe0f\u200d🔥", "❤\ufe0f\u200d🔥"),
        ("שלום", "שלום"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_a_token_reads_as_a_reader_knows_it(token: str, shown: str):
    assert words.token(token) == shown


@given(text=st.text())
def test_visible_text_is_one_line_without_control_characters(text: str):
    shown = words.visible(text)
    assert len(shown.splitlines()) <= 1
    joiners = "\u200c\u200d"
    assert not {unicodedata.category(char) for char in shown if char not in joiners} & {
        *("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"),
    }
    assert words.visible(shown) == shown
    shown.encode()


@given(text=st.text())
def test_nothing_vanishes(text: str):
    assert len(words.visible(text)) >= len(text)
    plain = "".join(char for char in text if char.isprintable() and not words.BLANK.match(char))
    assert words.visible(plain) == plain


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0, "0%"),
        (0.0004, "<0.1%"),
        (0.0049, "0.5%"),
        (0.0994, "9.9%"),
        (0.0996, "10%"),
        (1, "100%"),
    ],
)
def test_a_share_has_as_many_digits_as_matter(share: float, shown: str):
    assert words.percent(share) == shown


def test_a_cut_text_says_so():
    assert words.clipped("Texas, TX", 20) == "Texas, TX"
    assert words.clipped("Texas, TX, Lone", 8) == "Texas…"
    assert words.clipped_front("The capital of Texas is", 10) == "…Texas is"
    assert words.wrapped("one two three four five", 9, 2) == ["one two", "three fo…"]
    assert words.wrapped("x" * 30, 10, 2) == ["x" * 10, "x" * 9 + "…"]
