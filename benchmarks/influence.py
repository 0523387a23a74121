"""Influence of training data beside training without it: `python -m benchmarks.influence [FILE]`.

A small slice of training is done again and again: from the shipped weights a pass over so many
sentences of the corpus, in one order, with all of them and then without each of some groups. Groups
are of one size: sentences about one state, of one behaviour, or drawn at random. Each state and
behaviour has a question; how much less log-probability its answer has without a group is held
against the sum of what `influences` predicts of the group's sentences, at the weights that the pass
over all of them ends with. Rank correlations are over groups, a question at a time; their mean has
an interval from drawing questions anew, and stands beside that over groups that are not the
question's own, and beside simpler predictions. Some five minutes of one core; `--quick` takes few
groups and sentences and writes nothing.
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import GPT2LMHeadModel

from benchmarks.output import RESULTS, output_file
from replacement_models import ReplacementModel
from replacement_models.tiny.recipe.behaviours import asked as question
from replacement_models.tiny.recipe.corpus import Source
from replacement_models.tiny.recipe.influence import (
    Rows,
    asked,
    drawn,
    influences_under,
    language_model,
    rows_of,
)
from tracer.validation.correlation import spearman

SEED, DRAWS = 5, 2000
DAMPINGS = {"influence": None, "influence, damping 0.001": 1e-3, "gradients alone": 1e3}
"""Under the heaviest the curvature is nothing beside it."""
RATE, BATCH = 3e-4, 40
"""Of the pass: peak of AdamW's rate, which falls to nothing, and sentences a step."""
BEHAVIOURS = {
    "opposites en": "opposite of",
    "opposites fr": "contraire",
    "opposites es": "contrario",
    "opposites de": "Gegenteil",
    "plurals": "plural of",
    "indirect object": "hen ",
}
"""Behaviours, and words that their sentences alone hold."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    sentences: int = 800
    group: int = 10
    states: int = 6
    behaviours: int = 6
    random: int = 6


FULL, QUICK = Sizes(), Sizes(160, 3, 1, 1, 2)


def states_of(sentence: str, source: Source) -> set[str]:
    """States that a marked sentence is about."""
    if "{" in sentence:
        return {source.cities.state_of[sentence.partition("{")[2].partition("}")[0]]}
    return {state for state in source.facts["states"] if state in sentence}


@dataclass(frozen=True)
class Slice:
    """Sentences, groups of them, and a question of each group that has one."""

    marked: list[str]
    groups: dict[str, list[int]]
    questions: dict[str, tuple[str, str]]


def sliced(source: Source, sizes: Sizes) -> Slice:
    """Draw sentences, groups and questions."""
    rng, marked = random.Random(SEED), drawn(source, sizes.sentences, SEED)
    about: dict[str, list[int]] = {}
    for number, sentence in enumerate(marked):
        for state in states_of(sentence, source):
            about.setdefault(state, []).append(number)
    enough = [state for state in sorted(about) if len(about[state]) >= sizes.group]
    groups, questions = {}, {}
    for state in rng.sample(enough, sizes.states):
        groups[state] = rng.sample(about[state], sizes.group)
        capital = source.facts["states"][state]["capital"]
        questions[state] = (f"the capital of {state} is", capital)
    for name, words in list(BEHAVIOURS.items())[: sizes.behaviours]:
        of = [number for number, sentence in enumerate(marked) if words in sentence]
        groups[name] = rng.sample(of, sizes.group)
        one = question(marked[groups[name][0]])
        questions[name] = (one.text, one.answer)
    for number in range(sizes.random):
        groups[f"random {number + 1}"] = rng.sample(range(len(marked)), sizes.group)
    return Slice(marked, groups, questions)


def passed(model: GPT2LMHeadModel, rows: Rows, left_out: Sequence[int] = ()) -> GPT2LMHeadModel:
    """The model after one pass over the sentences, without some; the rest as it would be."""
    found = copy.deepcopy(model)
    rest = [one for name, one in found.named_parameters() if "wte" not in name]
    optim = torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    counts = rows.counts.clone()
    whole = float(counts.sum()) * BATCH / len(rows)
    counts[list(left_out)] = 0
    order = random.Random(SEED).sample(range(len(rows)), len(rows))
    for start in range(0, len(rows), BATCH):
        optim.param_groups[0]["lr"] = RATE * (1 - start / len(rows))
        some = Rows(rows.ids, counts, rows.lengths).those(order[start : start + BATCH])
        (some.loss(found).sum() / whole).backward()
        optim.step()
        optim.zero_grad()
    return found


def said(model: GPT2LMHeadModel, answers: Rows) -> Float[np.ndarray, " answers"]:
    """Log-probability of each answer, in nats."""
    with torch.no_grad():
        found: np.ndarray = -answers.loss(model).double().numpy()
    return found


def with_interval(values: Sequence[float]) -> list[float]:
    """A mean over questions with its interval of 95 %, questions drawn anew."""
    held = np.array(values)
    means = held[np.random.default_rng(SEED).integers(0, len(held), (DRAWS, len(held)))].mean(1)
    return [round(float(one), 3) for one in (held.mean(), *np.quantile(means, (0.025, 0.975)))]


def correlations(
    predicted: Float[np.ndarray, "questions groups"],
    measured: Float[np.ndarray, "questions groups"],
) -> dict[str, Any]:
    """Rank correlations over groups, a question at a time; question q's own group is group q."""
    own = np.eye(*predicted.shape, dtype=bool)
    each = {"all groups": ~np.zeros_like(own), "groups that are not its own": ~own}
    found: dict[str, Any] = {}
    for name, which in each.items():
        values = [
            spearman(some[at], true[at], fewest=3)
            for some, true, at in zip(predicted, measured, which, strict=True)
        ]
        found[name] = with_interval([value or 0.0 for value in values])
    found["questions whose own group is predicted to matter most"] = int(
        (predicted.argmax(1) == np.arange(len(predicted))).sum()
    )
    return found


def simpler(cut: Slice, seed: int) -> dict[str, np.ndarray]:
    """What needs no gradients: chance, and how many words a group shares with the question."""
    rng = np.random.default_rng(seed)
    words = {
        name: [set(cut.marked[number].lower().translate(PLAIN).split()) for number in group]
        for name, group in cut.groups.items()
    }
    shared = [
        [
            float(sum(len(one & set(f"{prompt} {answer}".lower().split())) for one in group))
            for group in words.values()
        ]
        for prompt, answer in cut.questions.values()
    ]
    return {"words in common": np.array(shared), "chance": rng.random(np.shape(shared))}


PLAIN = str.maketrans("", "", "[]{}<>.,")


def measured(sizes: Sizes) -> dict[str, Any]:
    """Everything that is written."""
    replaced = ReplacementModel.load()
    tokenizer: Any = replaced.tokenizer
    model, source = language_model(replaced)
    cut = sliced(source, sizes)
    rows = rows_of(cut.marked, tokenizer)
    answers = rows_of([asked(*one) for one in cut.questions.values()], tokenizer)
    start = time.process_time()
    whole = passed(model, rows)
    before, between = said(whole, answers), time.process_time()
    scores = influences_under(whole, rows, answers, tuple(DAMPINGS.values())).double().numpy()
    after = time.process_time()
    predicted = {
        name: np.stack([one[:, group].sum(1) for group in cut.groups.values()], 1)
        for name, one in zip(DAMPINGS, scores, strict=True)
    }
    losses = np.stack(
        [before - said(passed(model, rows, group), answers) for group in cut.groups.values()], 1
    )
    others = simpler(cut, SEED)
    return {
        "sentences": len(rows),
        "sentences a group": sizes.group,
        "groups": list(cut.groups),
        "questions": [f"{prompt} [{answer}]" for prompt, answer in cut.questions.values()],
        "CPU seconds": {
            "a pass": round(between - start, 1),
            "factors and scores": round(after - between, 1),
        },
        "rank correlation, low, high": {
            name: correlations(values, losses) for name, values in {**predicted, **others}.items()
        },
        "questions whose own group matters most": int(
            (losses.argmax(1) == np.arange(len(losses))).sum()
        ),
        "predicted": rounded(predicted["influence"]),
        "measured": rounded(losses),
    }


def rounded(table: Float[np.ndarray, "rows columns"]) -> list[list[float]]:
    """A table to six digits."""
    return [[float(f"{value:.6g}") for value in row] for row in table]


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", nargs="?", type=output_file)
    arguments.add_argument("--quick", action="store_true", help="Few groups; writes no result.")
    given = arguments.parse_args()
    found = measured(QUICK if given.quick else FULL)
    shown = {name: value for name, value in found.items() if name not in ("predicted", "measured")}
    print(json.dumps(shown, indent=1, ensure_ascii=False))
    file = given.file or (None if given.quick else RESULTS / "influence.json")
    if file is not None:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
