"""Ask ten questions of a dataset of graphs in SQL and write docs/guides/queries.md from them.

    python -m docs.fill_queries

Every table and every sentence with a number is made of what DuckDB answered;
`tests/test_docs_queries.py` asks again and compares.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import tracer
from docs.fill_readme import ROOT

PAGE = ROOT / "docs" / "guides" / "queries.md"
OPPOSITES = {
    "en": ("the opposite of {} is", ("hot", "slow", "happy", "open")),
    "fr": ("le contraire du mot {} est", ("chaud", "lent", "heureux", "ouvert")),
    "es": ("lo contrario de {} es", ("caliente", "lento", "feliz", "abierto")),
    "de": ("das Gegenteil von {} ist", ("heiß", "langsam", "froh", "offen")),
}
HEAD = """# Ten questions in SQL

A dataset of graphs is Parquet, so anything that reads Parquet answers questions about a thousand
graphs at once. Here is DuckDB (`pip install duckdb`); pyarrow, polars and pandas see the same
columns ([what is in it](many-prompts.md#what-is-in-it)). Opposites in four languages are asked of
the embedded default, {prompts} prompts of which one cannot be traced:

```sh
tracer trace --prompts opposites.jsonl -o opposites.graphs
```

```python
import duckdb
import tracer

prompts = [{{"prompt": "the opposite of hot is", "language": "en"}}]  # or the file
tracer.trace_many(tracer.ReplacementModel.load(), prompts, "opposites.graphs")
duckdb.sql("SELECT text, answer FROM 'opposites.graphs/prompts/*.parquet'").show()
```

The tables join by `prompt`, and edges to nodes by `prompt` and `id`. `influence` is in units of the
targets' weights; over the weight of all targets of the prompt (`probability` of its logits) it is
a part of the answer. A feature is `layer` and `feature`; pruning took the rest of each graph.

The views that the questions use:

```sql
{views}
```

This page is written by `python -m docs.fill_queries`, which asks; a test asks again.
"""
VIEWS = """CREATE VIEW prompts AS FROM 'opposites.graphs/prompts/*.parquet';
CREATE VIEW nodes AS FROM 'opposites.graphs/nodes/*.parquet';
CREATE VIEW edges AS FROM 'opposites.graphs/edges/*.parquet';
CREATE VIEW wholes AS
  SELECT prompt, sum(probability) AS whole FROM nodes WHERE kind = 'logit' GROUP BY prompt;"""
Rows = Sequence[tuple[Any, ...]]


class Question(NamedTuple):
    """What is asked, in words and in SQL, and what is said of the answer."""

    asked: str
    sql: str
    say: Callable[[Rows], str]


def percent(share: float) -> str:
    """A share in per cent, to be compared within rounding."""
    return f"{100 * share:.1f} %"


def label(row: tuple[Any, ...], at: int = 0) -> str:
    """A feature: layer, number and label stand beside each other."""
    return f"L{row[at]}/{row[at + 1]} ({row[at + 2] or 'no label'})"


QUESTIONS = (
    Question(
        "How sure is the model in each language, and how well do the graphs explain it?",
        """SELECT language, count(*) AS graphs, round(avg(probability), 3) AS probability,
       round(avg(completeness), 3) AS completeness
FROM prompts WHERE status = 'traced' GROUP BY language ORDER BY language""",
        lambda rows: (
            f"The likeliest answers have {min(rows, key=lambda r: r[2])[2]:.3f} "
            f"({min(rows, key=lambda r: r[2])[0]}) to {max(rows, key=lambda r: r[2])[2]:.3f} "
            f"({max(rows, key=lambda r: r[2])[0]}) of the probability at the mean."
        ),
    ),
    Question(
        "What failed, and why?",
        """SELECT prompt, text, reason FROM prompts WHERE status = 'failed' ORDER BY prompt""",
        lambda rows: f"{len(rows)} prompt failed: {rows[0][2]}.",
    ),
    Question(
        "Which graphs explain least?",
        """SELECT text, answer, round(completeness, 3) AS completeness,
       round(uncovered, 3) AS uncovered
FROM prompts WHERE status = 'traced' ORDER BY prompts.completeness, prompt LIMIT 3""",
        lambda rows: f"“{rows[0][0]}” has the lowest completeness, {rows[0][2]:.3f}.",
    ),
    Question(
        "Which features stand in the most graphs?",
        """SELECT layer, feature, min(split_part(label, ' · ', 1)) AS label,
       count(DISTINCT prompt) AS graphs, count(DISTINCT language) AS languages
FROM nodes JOIN prompts USING (prompt) WHERE kind = 'feature'
GROUP BY layer, feature ORDER BY graphs DESC, layer, feature LIMIT 5""",
        lambda rows: f"{label(rows[0])} stands in {rows[0][3]} graphs, of {rows[0][4]} languages.",
    ),
    Question(
        "Which features do several languages share, and what do they carry where they stand?",
        """SELECT layer, feature, min(split_part(label, ' · ', 1)) AS label,
       string_agg(DISTINCT language, ', ' ORDER BY language) AS languages,
       count(DISTINCT prompt) AS graphs,
       round(sum(influence / whole) / count(DISTINCT prompt), 4) AS carries
FROM nodes JOIN prompts USING (prompt) JOIN wholes USING (prompt) WHERE kind = 'feature'
GROUP BY layer, feature HAVING count(DISTINCT language) > 1
ORDER BY count(DISTINCT language) DESC, graphs DESC, layer, feature LIMIT 8""",
        lambda rows: (
            f"{label(rows[0])} is shared by the most, {len(rows[0][3].split(', '))} of 4; of those "
            f"listed {label(max(rows, key=lambda r: r[5]))} carries the most, "
            f"{percent(max(r[5] for r in rows))} of the answer."
        ),
    ),
    Question(
        "Which feature carries the most in one language and stands in no other?",
        """SELECT layer, feature, min(split_part(label, ' · ', 1)) AS label,
       min(language) AS language, count(DISTINCT prompt) AS graphs,
       round(sum(influence / whole), 3) AS carries
FROM nodes JOIN prompts USING (prompt) JOIN wholes USING (prompt) WHERE kind = 'feature'
GROUP BY layer, feature HAVING count(DISTINCT language) = 1
QUALIFY 1 = row_number()
        OVER (PARTITION BY min(language) ORDER BY sum(influence / whole) DESC)
ORDER BY language""",
        lambda rows: "; ".join(f"{row[3]}: {label(row)}, in {row[4]} graphs" for row in rows) + ".",
    ),
    Question(
        "In which layer does the influence stand?",
        """SELECT layer, count(*) AS nodes, round(sum(influence / whole) /
       (SELECT count(*) FROM prompts WHERE status = 'traced'), 3) AS carries
FROM nodes JOIN wholes USING (prompt) WHERE kind = 'feature' GROUP BY layer ORDER BY layer""",
        lambda rows: (
            f"Features of layer {max(rows, key=lambda r: r[2])[0]} carry the most of an answer, "
            f"{percent(max(r[2] for r in rows))} at the mean; shares of different layers overlap, "
            "since a path passes through several."
        ),
    ),
    Question(
        "What holds an answer back? The strongest inhibiting edges into the likeliest token.",
        """SELECT n.layer, n.feature, split_part(n.label, ' · ', 1) AS label, p.text,
       round(e.share, 3) AS share
FROM edges e JOIN prompts p USING (prompt)
JOIN nodes n ON n.prompt = e.prompt AND n.id = e.source
JOIN nodes t ON t.prompt = e.prompt AND t.id = e.target AND t.label = p.answer
WHERE t.kind = 'logit' AND n.kind = 'feature' AND e.weight < 0
ORDER BY e.share, p.prompt, n.id LIMIT 3""",
        lambda rows: (
            f"The strongest is {label(rows[0])} after “{rows[0][3]}”: {percent(-rows[0][4])} of "
            "the absolute input of the answer."
        ),
    ),
    Question(
        "How much ends in what no feature explains, by distance from the last token?",
        """WITH ends AS (SELECT prompt, max(position) AS last FROM nodes GROUP BY prompt)
SELECT last - position AS before_the_end, round(sum(influence / whole) /
       (SELECT count(*) FROM prompts WHERE status = 'traced'), 3) AS carries
FROM nodes JOIN ends USING (prompt) JOIN wholes USING (prompt)
WHERE kind = 'error' GROUP BY ALL ORDER BY before_the_end LIMIT 4""",
        lambda rows: (
            f"Errors that pruning left carry {percent(rows[0][1])} of an answer at the last token "
            f"and {percent(rows[1][1])} at the one before."
        ),
    ),
    Question(
        "Which two steps lead from a token through a feature to the answer most often?",
        """SELECT s.text AS token, f.layer, f.feature, min(split_part(f.label, ' · ', 1)) AS label,
       count(DISTINCT e.prompt) AS graphs, round(avg(abs(e.share * g.share)), 4) AS carries
FROM edges e JOIN edges g ON g.prompt = e.prompt AND g.source = e.target
JOIN nodes s ON s.prompt = e.prompt AND s.id = e.source AND s.kind = 'embedding'
JOIN nodes f ON f.prompt = e.prompt AND f.id = e.target AND f.kind = 'feature'
JOIN prompts p ON p.prompt = e.prompt
JOIN nodes t ON t.prompt = g.prompt AND t.id = g.target AND t.label = p.answer
WHERE t.kind = 'logit'
GROUP BY s.text, f.layer, f.feature ORDER BY graphs DESC, carries DESC, token LIMIT 4""",
        lambda rows: f"“{rows[0][0].strip()}” → {label(rows[0], 1)}, in {rows[0][4]} graphs.",
    ),
)


def prompts() -> list[dict[str, Any]]:
    """What is traced; the last one cannot be."""
    found: list[dict[str, Any]] = [
        {"prompt": form.format(word), "language": language}
        for language, (form, words) in OPPOSITES.items()
        for word in words
    ]
    return [*found, {"prompt": "the opposite of hot is", "target": "colder than", "language": "en"}]


def cell(value: Any) -> str:
    """A value as a table of Markdown holds it."""
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def table(names: Sequence[str], rows: Rows) -> str:
    """A table of Markdown."""
    lines = [names, ["---"] * len(names), *([cell(one) for one in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fresh(folder: str) -> str:
    """The page, traced and asked anew in an empty folder."""
    import duckdb

    place, given = Path(folder), prompts()
    file = place / "opposites.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in given), encoding="utf-8")
    tracer.trace_many(tracer.ReplacementModel.load(), file, place / "opposites.graphs")
    parts = [HEAD.format(prompts=len(given), views=VIEWS)]
    with duckdb.connect() as base:
        base.execute(f"SET file_search_path = '{folder}'")
        base.execute("SET threads = 1")  # sums in one order
        base.execute(VIEWS)
        for number, question in enumerate(QUESTIONS, 1):
            asked = base.execute(question.sql)
            names = [column[0] for column in asked.description]
            rows = asked.fetchall()
            parts.append(
                f"## {number}. {question.asked}\n\n```sql\n{question.sql}\n```\n\n"
                f"{table(names, rows)}\n\n{question.say(rows)}\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        PAGE.write_text(fresh(place), encoding="utf-8")
