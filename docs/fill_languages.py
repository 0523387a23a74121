"""Ask which features four languages share and write docs/guides/languages.md from the answers.

    python -m docs.fill_languages

Every table and every figure in a sentence is made of what `tracer.aggregate` and `tracer.clusters`
answer; `tests/test_docs_languages.py` asks again and compares.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tracer
from docs.fill_queries import percent, table
from docs.fill_readme import ROOT

PAGE = ROOT / "docs" / "guides" / "languages.md"
FORMS = {
    "de": "das Gegenteil von {} ist",
    "en": "the opposite of {} is",
    "es": "lo contrario de {} es",
    "fr": "le contraire du mot {} est",
}
COMMON, ACROSS = 0.5, 0.75
"""Share of a language's graphs that hold what is common to it; of a meaning's, one a language."""
LISTED = 8
PAGE_TEXT = """# Features that languages share

Opposites are asked of the embedded default in four languages, {meanings} meanings each, {prompts}
prompts in all: “{example}” is one. A column says the language, another the meaning.

```sh
tracer trace --prompts opposites.jsonl -o opposites.graphs
tracer aggregate opposites.graphs --group-by language --frequency {common} -o languages.svg
tracer aggregate opposites.graphs --group-by meaning --frequency {across} --top 3
tracer cluster opposites.graphs --clusters {languages} --group-by language
```

This page is written by `python -m docs.fill_languages`, which asks in Python; a test asks again.

## Which features are common to several languages?

```python
import tracer

prompts = [{{"prompt": "the opposite of hot is", "language": "en", "meaning": "hot"}}]  # and so on
tracer.trace_many(tracer.ReplacementModel.load(), prompts, "opposites.graphs")
found = tracer.aggregate("opposites.graphs", "language")
found.shared(0.5).to_pylist()
```

A feature is common to a language where at least half of its {meanings} graphs hold it.

{common_table}

{common_said}

## Which stand for a meaning, whatever the language?

A feature stands for a meaning where the graphs of at least three of the four languages hold it, and
for little else where it does so for few meanings.

{meaning_table}

{meaning_said}

## Are graphs alike by language or by meaning?

{cluster_table}

{cluster_said}
"""


def prompts() -> list[dict[str, str]]:
    """One prompt a language and meaning, named in English."""
    place = files("replacement_models.tiny.recipe") / "facts.json"
    known = json.loads(place.read_text(encoding="utf-8"))["opposites"]
    return [
        {"prompt": form.format(first), "language": language, "meaning": english[0]}
        for language, form in FORMS.items()
        for (first, _), english in zip(known[language], known["en"], strict=True)
    ]


def label(row: dict[str, Any]) -> str:
    """The first part of a feature's label."""
    return str(row["label"] or "").split(" · ")[0]


def name(row: dict[str, Any]) -> str:
    """A feature's layer and number."""
    return f"L{row['layer']}/{row['feature']}"


def common(found: tracer.Aggregate, meanings: int) -> tuple[str, str]:
    """Features of several languages as a table, and what is to be said of them."""
    rows = found.shared(COMMON).to_pylist()
    several = [row for row in rows if len(row["groups"]) > 1]
    lines = [
        (
            name(row),
            label(row),
            ", ".join(
                f"{group} {round(share * meanings)}"
                for group, share in zip(row["groups"], row["frequencies"], strict=True)
            ),
        )
        for row in several[:LISTED]
    ]
    own = dict.fromkeys(FORMS, 0)
    for row in rows:
        if len(row["groups"]) == 1:
            own[row["groups"][0]] += 1
    alone = ", ".join(f"{group} {count}" for group, count in own.items())
    said = (
        f"{len(several)} of {len(rows)} features that are common to a language are common to more "
        f"than one; {sum(len(row['groups']) == len(FORMS) for row in rows)} to all four. Common to "
        f"one alone: {alone}."
    )
    return table(("feature", "label", f"graphs of {meanings} in each language"), lines), said


def by_meaning(found: tracer.Aggregate) -> tuple[str, str]:
    """Features that stand for a meaning in three languages or more."""
    rows = found.shared(ACROSS).to_pylist()
    count = found.groups.num_rows
    rows.sort(key=lambda row: (len(row["groups"]), -max(row["frequencies"]), row["node"]))
    lines = [
        (name(row), label(row), ", ".join(row["groups"]), round(4 * max(row["frequencies"])))
        for row in rows[:LISTED]
    ]
    few = [row for row in rows if len(row["groups"]) == 1]
    layers = [row["layer"] for row in few]
    held = sorted({group for row in few for group in row["groups"]})
    last = max(layers, default=0)
    said = (
        f"{len(rows)} features stand for some meaning in three languages or more, {len(few)} of "
        f"them for one alone, {layers.count(last)} of these in layer {last}, the last that has "
        f"any. {len(held)} of {count} meanings have such a feature of their own."
    )
    return table(("feature", "label", "meanings", "languages"), lines), said


def alike(dataset: tracer.GraphDataset, counts: dict[str, int]) -> tuple[str, str]:
    """How far clusters of graphs are languages, and how far meanings."""
    lines: list[tuple[Any, ...]] = []
    for column, count in counts.items():
        for by in ("influence", "features"):
            one = tracer.clusters(dataset, count, by, column)
            assert one.agreement is not None
            lines.append((count, by, column, round(one.agreement, 2) + 0.0))
    best = {column: max(line[3] for line in lines if line[2] == column) for column in counts}
    said = (
        f"Clusters agree with the languages by {best['language']} at best and with the meanings by "
        f"{best['meaning']} (adjusted Rand index: 1 the same, about 0 by chance)."
    )
    return table(("clusters", "by", "held against", "adjusted Rand index"), lines), said


def shares(found: tracer.Aggregate) -> str:
    """What features common to all languages carry at the mean over the languages."""
    every = [row["node"] for row in found.shared(COMMON).to_pylist()
             if len(row["groups"]) == len(FORMS)]  # fmt: skip
    rows = [row for row in found.nodes.to_pylist() if row["node"] in every]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row["influence"])
    return (
        f" Of those common to all four {name(most | {'feature': most['name']})} carries the most, "
        f"{percent(most['influence'])} of the answer in {most['group']}."
    )


def fresh(folder: str, asked: Sequence[dict[str, str]] | None = None) -> str:
    """The page, traced and asked anew in an empty folder."""
    given = prompts() if asked is None else list(asked)
    dataset = tracer.trace_many(tracer.ReplacementModel.load(), given, Path(folder) / "graphs")
    meanings = len({one["meaning"] for one in given})
    found = tracer.aggregate(dataset, "language")
    common_table, common_said = common(found, meanings)
    meaning_table, meaning_said = by_meaning(tracer.aggregate(dataset, "meaning"))
    cluster_table, cluster_said = alike(dataset, {"language": len(FORMS), "meaning": meanings})
    return PAGE_TEXT.format(
        meanings=meanings, prompts=len(given), example=given[0]["prompt"], common=COMMON,
        across=ACROSS, languages=len(FORMS), common_table=common_table,
        common_said=f"{common_said}{shares(found)}", meaning_table=meaning_table,
        meaning_said=meaning_said, cluster_table=cluster_table, cluster_said=cluster_said,
    )  # fmt: skip


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        PAGE.write_text(fresh(place), encoding="utf-8")
