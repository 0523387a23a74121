"""Labels in free text, from a language model, and how true they are by that model's own judgement.

As in EleutherAI's delphi: one question shows passages in which the feature fires, its tokens in
«marks», and asks what they have in common. Two more test the answer on text held out. Detection
shows passages, half of which the feature fires in, and asks which ones fit. Fuzzing shows passages
in which it fires, half of them with other tokens in marks, and asks where the marks are right.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from replacement_models import ReplacementModel
from tracer.features.labels.choosing import Side
from tracer.features.labels.endpoint import Endpoint

AROUND = 12
"""Tokens on either side of a firing that a passage shows."""
SHOWN, TESTED = 12, 10
"""Passages that are explained, and of each sort that are judged."""
LONGEST = 120
"""Characters of an explanation that are kept."""
ALWAYS = 2 / 3
"""F1 of saying yes to every passage, of which half are right."""
EXPLAIN = (
    "You explain what a feature of a language model responds to. You are shown passages in which "
    "it fires; the tokens it fires on stand in «marks». Answer with one short phrase that says "
    "what these tokens or their contexts have in common, and with nothing else."
)
DETECT = (
    "You are given an explanation of a feature of a language model and numbered passages. Say for "
    "each passage whether it holds what the explanation describes: 1 for yes, 0 for no. Answer "
    "with a JSON list of as many numbers as there are passages, and with nothing else."
)
FUZZ = (
    "You are given an explanation of a feature of a language model and numbered passages with some "
    "tokens in «marks». Say for each passage whether the marked tokens are those that the "
    "explanation describes: 1 for yes, 0 for no. Answer with a JSON list of as many numbers as "
    "there are passages, and with nothing else."
)


@dataclass(frozen=True)
class Explained:
    """A free text with its scores, shares from 0 to 1, on as many right passages as wrong ones."""

    text: str
    precision: float
    recall: float
    f1: float
    fuzzing: float
    """Share of passages whose marks were judged right."""

    @property
    def shown(self) -> bool:
        """Whether it may stand for the feature: better than saying yes to every passage."""
        return self.f1 > ALWAYS


def explain(
    endpoint: Endpoint,
    model: ReplacementModel,
    pick: Side,
    held_out: Side,
    firing: Int[np.ndarray, " firing"],
    apart: Int[np.ndarray, " firing"],
) -> Explained | None:
    """Ask for a label and test it.

    Args:
        endpoint: the language model that is asked.
        model: whose tokens.
        pick: text that passages to be explained are from.
        held_out: text that passages to be judged are from.
        firing: where the feature fires in `pick`.
        apart: where it fires in `held_out`.

    Returns:
        None where it fires too rarely, or in too many rows, to be tested, or the answers are none.

    Raises:
        SpentError: no request is left.
        TraceError: the endpoint fails.
    """
    if not len(firing) or not len(apart):
        return None
    shown = [_passage(model, pick, at, firing) for at in _spread(firing, SHOWN)]
    text = " ".join(endpoint.ask(EXPLAIN, _numbered(shown)).split()).strip(" \"'.")[:LONGEST]
    if not text:
        return None
    right = _spread(apart, TESTED)
    wrong = _elsewhere(held_out, apart, len(right))
    if len(wrong) < len(right):
        return None
    none = np.zeros(0, dtype=np.int64)
    plain = [_passage(model, held_out, at, none) for at in (*right, *wrong)]
    truth = np.array([True] * len(right) + [False] * len(wrong))
    found = _judged(endpoint, DETECT, text, plain, truth)
    marked = [_passage(model, held_out, at, apart) for at in right]
    marked += [
        _passage(model, held_out, at, np.array([_other(held_out, at, apart)])) for at in right
    ]
    fuzzed = np.array([True] * len(right) + [False] * len(right))
    judged = _judged(endpoint, FUZZ, text, marked, fuzzed)
    if found is None or judged is None:
        return None
    hits, said = int((found & truth).sum()), int(found.sum())
    return Explained(
        text=text,
        precision=hits / said if said else 0.0,
        recall=hits / len(right),
        f1=2 * hits / (said + len(right)),
        fuzzing=float((judged == fuzzed).mean()),
    )


def _judged(
    endpoint: Endpoint, question: str, text: str, passages: Sequence[str], truth: np.ndarray
) -> np.ndarray | None:
    """Yes or no for every passage, which are shown in an order that tells nothing."""
    order = np.random.default_rng(0).permutation(len(passages))
    shown = _numbered([passages[at] for at in order])
    answer = endpoint.ask(question, f"Explanation: {text}\n\n{shown}")
    list_of = re.search(r"\[[01,\s]*\]", answer)
    found = json.loads(list_of.group()) if list_of and "," in list_of.group() else []
    if len(found) != len(truth):
        return None
    judged = np.zeros(len(truth), dtype=bool)
    judged[order] = np.array(found, dtype=bool)
    return judged


def _numbered(passages: Sequence[str]) -> str:
    return "\n".join(f"{number}. {text}" for number, text in enumerate(passages, 1))


def _spread(firing: Int[np.ndarray, " firing"], count: int) -> list[int]:
    places = np.linspace(0, len(firing) - 1, min(count, len(firing))).astype(int)
    return [int(firing[at]) for at in places]


def _elsewhere(side: Side, firing: Int[np.ndarray, " firing"], count: int) -> list[int]:
    """Tokens of rows in which the feature does not fire, spread over the text."""
    rows = side.observed.row
    silent = np.flatnonzero(~np.isin(rows, rows[firing]))
    return _spread(silent, count) if len(silent) else []


def _other(side: Side, at: int, firing: Int[np.ndarray, " firing"]) -> int:
    """A token of the same passage on which the feature does not fire; the farthest there is."""
    rows = side.observed.row
    near = np.flatnonzero(rows == rows[at])
    near = near[(abs(near - at) <= AROUND) & ~np.isin(near, firing)]
    return int(near[abs(near - at).argmax()]) if len(near) else at


def _passage(model: ReplacementModel, side: Side, at: int, marked: Int[np.ndarray, " some"]) -> str:
    """Tokens around one that counts, those of `marked` in «marks»."""
    seen = side.observed
    width = seen.text.tokens.shape[1]
    row, column = divmod(int(seen.at[at]), width)
    there = {int(one) for one in seen.at[marked]}
    found = []
    for position in range(max(0, column - AROUND), min(width, column + AROUND + 1)):
        token = int(seen.text.tokens[row, position])
        if token < 0 or not (seen.text.counts[row, position] or position == column):
            continue
        text = model.token_string(token)
        bare = text.strip()
        inside = row * width + position in there
        found.append(text.replace(bare, f"«{bare}»", 1) if inside and bare else text)
    between = " " if model.tokenizer is None else ""  # ids stand for words then
    return " ".join(between.join(found).split())
