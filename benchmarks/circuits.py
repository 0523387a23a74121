"""Circuits that stand when attention is made anew: `python -m benchmarks.circuits [FILE.json]`.

For each of the validation's prompts a graph of the likeliest tokens and one of the lead, pruned by
edges alone, with what steers attention to the first order, and with what QK attribution says does.
Everything outside a circuit is at its mean over the corpus, errors count as nodes, and what is kept
is faithfulness as Marks et al. define it: 0 for what nothing keeps, 1 for what the model does. The
rule is chosen on every second prompt and reported on the others. Writes JSON, and size against what
is kept as SVG beside it. A few minutes on one core; `-n 1` takes one bare prompt a behaviour.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.validation import BARE, SEED, chosen_prompts, embedded_source
from graphs import AttributionGraph, steering
from graphs.pictures import charts
from replacement_models import ReplacementModel
from tracer.attention.effects import ODDS, STEPS, answers
from tracer.validation.circuit import Circuit, circuit_of, leads
from tracer.validation.faithfulness import EDGES, above
from tracer.validation.held import HELD, NOTHING
from tracer.validation.means import Means
from tracer.validation.spread import spread
from tracer.validation.subject import Subject, subject

NODES = (0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97)
DRAWS = 10
"""Random circuits of the chosen circuit's size."""
INSIDE, LOST, MOST, ENOUGH = (0.8, 1.2), 0.2, 0.4, 0.7
"""A circuit stands where it keeps INSIDE and is nothing below LOST; ENOUGH of the circuits with at
most MOST of the nodes are to stand."""
TOKENS, LEAD = "likeliest tokens", "the lead"
EDGES_ALONE, FIRST_ORDER, QK = "edges alone", "first order", "QK attribution"
RULES = tuple((target, by) for target in (TOKENS, LEAD) for by in (EDGES_ALONE, FIRST_ORDER, QK))
"""What the graph explains, and by what nodes are kept that set attention and norms."""
MEANS, SILENT = "at means", "silent left"
"""Everything outside at its mean; or the same, but features that never fired left to answer."""
NONE = Circuit(frozenset(), frozenset())


def measured(
    model: ReplacementModel, text: str, means: Means, rules: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """What the circuits of one prompt keep of the lead under some rules, by size."""
    plain = tracer.trace(model, text)
    about = subject(model, plain)
    lead = tracer.Difference(about.aim.plus, about.aim.rival)
    whole, curves, circuits = circuit_of(plain), [], [NONE, circuit_of(plain)]
    for target in dict.fromkeys(target for target, _ in rules):
        tokens = about.recording.tokens
        graph = plain if target == TOKENS else tracer.trace(model, tokens, targets=[lead])
        for by, known in steered(model, graph, [by for one, by in rules if one == target]):
            mine = [circuit_of(known.prune(q, EDGES, by != EDGES_ALONE)) for q in NODES]
            curves.append((f"{target}, {by}", len(circuits), mine))
            circuits += mine
    shares = left(about, means, circuits, whole)
    found: dict[str, Any] = {"prompt": text, "nodes": whole.size, "random_seed": SEED}
    found |= {"nothing": at(shares, 0), "everything": at(shares, 1), "rules": {}}
    for name, start, mine in curves:
        found["rules"][name] = [
            {"threshold": q, "size": one.size / whole.size, **at(shares, start + row)}
            for row, (q, one) in enumerate(zip(NODES, mine, strict=True))
        ]
    found["own"] = about, whole, {name: mine for name, _, mine in curves}
    return found


def steered(
    model: ReplacementModel, graph: AttributionGraph, kinds: Sequence[str]
) -> Iterator[tuple[str, AttributionGraph]]:
    """The graph with what is known of its attention, in each way asked for."""
    for by in kinds:
        if by == EDGES_ALONE:
            yield by, graph
        else:
            found = answers(model, graph, STEPS if by == FIRST_ORDER else ODDS)
            table = steering.table(found.attention, found.norms)
            yield by, graph.with_tables({steering.NAME: table})


def left(
    about: Subject, means: Means, circuits: Sequence[Circuit], whole: Circuit, held: str = NOTHING
) -> dict[str, list[float]]:
    """Shares of the clean lead in circuits alone, in both ways of treating silent features."""
    clean = float(about.aim.lead(about.recording.logits_before_cap[-1:]))
    both = [*circuits, *(one.silent_left(whole) for one in circuits)]
    found = (leads(about, means, both, held) / clean).tolist()
    return {MEANS: found[: len(circuits)], SILENT: found[len(circuits) :]}


def at(shares: dict[str, list[float]], row: int) -> dict[str, float]:
    """One circuit's shares."""
    return {name: values[row] for name, values in shares.items()}


def fitting(curve: Sequence[dict[str, Any]]) -> int:
    """The largest circuit of a curve with at most MOST of the nodes; its size alone decides."""
    return max((row for row, one in enumerate(curve) if one["size"] <= MOST), default=0)


def standing(rows: Sequence[dict[str, Any]], rule: str, silent: str, row: int | None = None) -> Any:
    """How many prompts' circuits stand under a rule, at a threshold or with at most MOST."""
    kept, sizes = [], []
    for one in rows:
        curve = one["rules"][rule]
        point = curve[fitting(curve) if row is None else row]
        sizes.append(point["size"])
        kept.append(above(point[silent], one["nothing"][silent]))
    known = np.array([value for value in kept if value is not None])
    return {
        "prompts": len(kept),
        "stand": float(((known >= INSIDE[0]) & (known <= INSIDE[1])).mean()),
        "lost": float((known < LOST).mean()),
        "kept": spread(known),
        "size": spread(sizes),
        "largest": max(sizes),
        "without_denominator": len(kept) - len(known),
    }


def looked_into(found: dict[str, Any], means: Means, rule: str) -> None:
    """Random circuits of the reported circuit's size, and what it keeps with parts held."""
    about, whole, circuits = found.pop("own")
    row = fitting(found["rules"][rule])
    mine, random = circuits[rule][row], np.random.default_rng(SEED)
    drawn = [mine.drawn(whole, random) for _ in range(DRAWS)]
    shares = left(about, means, drawn, whole)
    found["random"] = {
        silent: [above(value, found["nothing"][silent]) for value in values]
        for silent, values in shares.items()
    }
    found["held"] = {}
    for held in HELD:
        parts = left(about, means, [NONE, mine], whole, held)
        found["held"][held] = {
            silent: above(kept, nothing) for silent, (nothing, kept) in parts.items()
        }


def missed(rows: Sequence[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    """The prompts whose circuit does not stand with all else at its mean, and what would mend it.

    Returns:
        What the circuit keeps; the same with silent features left alone, with attention, and with
        norms held too; and what the whole graph keeps, silent features at their means.
    """
    found = []
    for one in rows:
        point = one["rules"][rule][fitting(one["rules"][rule])]
        kept = above(point[MEANS], one["nothing"][MEANS])
        if kept is not None and not INSIDE[0] <= kept <= INSIDE[1]:
            found.append(
                {
                    "prompt": one["prompt"],
                    "kept": kept,
                    "silent left": above(point[SILENT], one["nothing"][SILENT]),
                    **{f"{held} held": one["held"][held][MEANS] for held in HELD[1:]},
                    "every node kept": above(one["everything"][MEANS], one["nothing"][MEANS]),
                }
            )
    return found


def reasons(found: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Of the prompts whose circuit does not stand, the share that each change would mend."""
    names = [name for name in (found[0] if found else {}) if name not in ("prompt", "kept")]
    return {
        name: float(np.mean([one[name] is not None and INSIDE[0] <= one[name] <= INSIDE[1]
                             for one in found]))
        for name in names
    }  # fmt: skip


def whole_graphs(rows: Sequence[dict[str, Any]], silent: str) -> float:
    """Share of the prompts whose graph stands with every node of it kept: no circuit's is asked."""
    kept = [above(one["everything"][silent], one["nothing"][silent]) for one in rows]
    return float(np.mean([INSIDE[0] <= one <= INSIDE[1] for one in kept if one is not None]))


def chart(rows: Sequence[dict[str, Any]], rules: Sequence[str]) -> str:
    """Median size against the share of prompts whose circuit stands, a line a rule.

    Of the first rule a second line, with silent features left alone.
    """
    points = {}
    for rule, silent in ((rules[0], SILENT), *((rule, MEANS) for rule in rules)):
        found = [standing(rows, rule, silent, row) for row in range(len(NODES))]
        name = rule if silent == MEANS else f"{rule}; {silent}"
        points[name] = [(one["size"]["median"], one["stand"]) for one in found]
    sizes = sorted({size for line in points.values() for size, _ in line})
    series = {name: [dict(line).get(size) for size in sizes] for name, line in points.items()}
    axis = ("median share of the nodes in the circuit", sizes)
    return charts.lines("Circuits alone, attention recomputed", axis, "stand (0.8 to 1.2)", series)


def show(title: str, table: dict[str, Any]) -> None:
    """Print a line a rule."""
    print(f"\n{title}")
    for name, one in table.items():
        print(
            f"  {name:44s} stand {one['stand']:.2f}  below {LOST} {one['lost']:.2f}  kept "
            f"{one['kept']['median']:.2f}  nodes {one['size']['median']:.2f} (at most "
            f"{one['largest']:.2f})  no denominator {one['without_denominator']}"
        )


def every(rows: Sequence[dict[str, Any]], row: int | None = None) -> dict[str, Any]:
    """All rules measured, in both ways of treating silent features."""
    return {
        f"{rule}; {silent}": standing(rows, rule, silent, row)
        for rule in rows[0]["rules"]
        for silent in (MEANS, SILENT)
    }


def main() -> None:
    """Choose on one half, report on the other, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    default = RESULTS / "circuits.json"
    arguments.add_argument("file", nargs="?", type=output_file, default=default)
    arguments.add_argument("-n", type=int, default=BARE, help="bare prompts a behaviour")
    given = arguments.parse_args()
    file: Path = given.file
    start, model = time.process_time(), ReplacementModel.load()
    means = tracer.corpus_means(model, model.corpus() if model.corpus else [])
    prompts = [prompt.text for _, prompt in chosen_prompts(embedded_source(model), given.n)]
    choice = [measured(model, text, means, RULES) for text in prompts[::2]]
    for one in choice:
        del one["own"]
    names = [f"{target}, {by}" for target, by in RULES]
    best = max(range(len(RULES)), key=lambda it: standing(choice, names[it], MEANS)["stand"])
    show(f"Chosen on {len(choice)} prompts, at most {MOST:.0%} of the nodes", every(choice))
    compared = [
        RULES[best],
        *(one for one in RULES if one[1] == EDGES_ALONE and one != RULES[best]),
    ]
    reported = [measured(model, text, means, compared) for text in prompts[1::2]]
    for one in reported:
        looked_into(one, means, names[best])
    table = every(reported)
    show(f"Reported on {len(reported)} others, at most {MOST:.0%} of the nodes", table)
    found = summed_up(names[best], choice, reported) | {"prompts": reported}
    for name in ("targets", "whole_graphs", "random", "mended"):
        print(f"\n{name}: {json.dumps(found[name], indent=1)}")
    print(f"\n{time.process_time() - start:.0f} CPU seconds")
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    picture = chart(reported, list(reported[0]["rules"]))
    file.with_suffix(".svg").write_text(picture, encoding="utf-8")


def summed_up(
    rule: str, choice: Sequence[dict[str, Any]], reported: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Everything but the single prompts."""
    mine = standing(reported, rule, MEANS)
    random = {
        silent: spread([value for one in reported for value in one["random"][silent]
                        if value is not None])
        for silent in (MEANS, SILENT)
    }  # fmt: skip
    failed = missed(reported, rule)
    middle = random[MEANS]["median"]
    return {
        "rule": rule,
        "targets": {
            f"stand, at least {ENOUGH}": [mine["stand"], mine["stand"] >= ENOUGH],
            f"below {LOST}, none": [mine["lost"], mine["lost"] == 0],
            f"nodes, at most {MOST}": [mine["largest"], mine["largest"] <= MOST],
            f"random, below {LOST}": [middle, middle is not None and middle < LOST],
        },
        "choice": every(choice),
        "reported": every(reported),
        "thresholds": {f"{q:g}": every(reported, row) for row, q in enumerate(NODES)},
        "whole_graphs": {silent: whole_graphs(reported, silent) for silent in (MEANS, SILENT)},
        "random": random,
        "mended": {"circuits": len(failed), **reasons(failed)},
        "missed": failed,
        "no_denominator": [
            {"prompt": one["prompt"], "nothing": one["nothing"]}
            for one in reported
            if any(above(0.0, value) is None for value in one["nothing"].values())
        ],
    }


if __name__ == "__main__":
    main()
