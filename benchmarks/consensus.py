"""Consensus circuits of behaviours: `python -m benchmarks.consensus [FILE.json] [--quick]`.

For each of the embedded default's 17 behaviours 50 prompts that it answers right are traced, and
the features that stand in at least half of the graphs are its consensus circuit; prompts drawn anew
say how stable it is. Then each circuit's features are set to zero at every position but the first
in 20 other prompts of every behaviour, everything else is recomputed, and the loss is how much less
log-probability the answer's first token has (nats). The table has a row a circuit and a column a
behaviour. `own` leaves out of each circuit what stands in another behaviour's too. `distinctive`
takes for each behaviour so many features whose frequency is highest above the mean of the other
behaviours', so that no circuit is empty; how many is chosen by the same table over some of the
prompts traced, not of those tested. Some four minutes of one core; `--quick` takes 6 prompts and 3.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.validation import embedded_source
from replacement_models import ReplacementModel
from replacement_models.tiny.recipe.behaviours import Prompt, behaviours, two_hop_behaviour
from tracer.interventions.forward import FeatureEdits, Run, run
from tracer.interventions.intervene import place
from tracer.interventions.values import Intervention

TRACED, TESTED, SEED, FREQUENCY = 50, 20, 0, 0.5
QUICK = (6, 3)
CHOICE, COUNTS, OFTEN = 5, (2, 4, 8, 16), 0.2
"""Traced prompts of each behaviour on which the number of distinctive features is chosen, the
numbers to choose from, and the frequency that such a feature has at least."""
ASKED = 5.0
"""Times the mean loss beside the diagonal that the mean on it is to be."""
Places = Sequence[tuple[int, int]]


def every_behaviour(model: ReplacementModel) -> dict[str, list[Prompt]]:
    """All prompts by behaviour, two hops about cities kept apart in training among them."""
    source = embedded_source(model)
    known = behaviours(source)
    return known | {"two hops, TEST cities": two_hop_behaviour(source, source.cities.test)}


def ids_of(model: ReplacementModel, prompt: Prompt) -> tuple[list[int], int]:
    """Tokens of a prompt, and the first of its answer."""
    tokenizer: Any = model.tokenizer
    answer = tokenizer.encode(prompt.answer, add_special_tokens=False)
    return list(model.tokenize(prompt.text)), int(answer[0])


def answered(model: ReplacementModel, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Prompts in random order whose answer's first token is the likeliest, so many of them."""
    found: list[Prompt] = []
    for prompt in random.Random(SEED).sample(prompts, len(prompts)):
        ids, answer = ids_of(model, prompt)
        logits = model.host.model(input_ids=torch.tensor([ids])).logits[0, -1]
        if int(logits.argmax()) == answer:
            found.append(prompt)
        if len(found) == count:
            break
    return found


@torch.no_grad()
def losses(model: ReplacementModel, prompt: Prompt, circuits: Sequence[Places]) -> np.ndarray:
    """Log-probability that the answer loses without each circuit's features, in nats.

    Returns:
        (circuits,)
    """
    ids, answer = ids_of(model, prompt)
    rows = [
        place(
            model,
            [
                Intervention(layer=layer, position=slice(1, None), feature=feature, scale=0.0)
                for layer, feature in places
            ],
            len(ids),
        )[0]
        for places in [(), *circuits]
    ]
    out = run(model, torch.tensor([ids] * len(rows)), Run(edit=FeatureEdits(rows), keep=False))
    said = torch.log_softmax(out.logits[:, -1].double(), -1)[:, answer]
    return (said[0] - said[1:]).numpy()


def table(
    model: ReplacementModel, tested: dict[str, list[Prompt]], circuits: Sequence[Places]
) -> np.ndarray:
    """Mean loss of every behaviour without every circuit: (circuits, behaviours), nats."""
    columns = [
        np.mean([losses(model, prompt, circuits) for prompt in prompts], axis=0)
        for prompts in tested.values()
    ]
    return np.stack(columns, axis=1)


def summed_up(
    names: Sequence[str], circuits: Sequence[Places], found: np.ndarray
) -> dict[str, Any]:
    """The table with what is asked of it."""
    on = np.diag(found)
    beside = found[~np.eye(len(names), dtype=bool)]
    largest = [name for row, name in zip(found, names, strict=True) if names[row.argmax()] == name]
    worst = {}
    for at, name in enumerate(names):
        other = int(np.argmax(np.where(np.arange(len(names)) == at, -np.inf, found[at])))
        worst[name] = {
            "features": len(circuits[at]),
            "loss": round(float(on[at]), 4),
            "most beside": names[other],
            "its loss": round(float(found[at, other]), 4),
        }
    return {
        "diagonal": round(float(on.mean()), 4),
        "beside": round(float(beside.mean()), 4),
        "ratio": round(float(on.mean() / beside.mean()), 3) if beside.mean() > 0 else None,
        "asked": ASKED,
        "circuits whose own behaviour loses most": len(largest),
        "by circuit": worst,
        "table": [[round(float(value), 4) for value in row] for row in found],
    }


def distinctive(found: tracer.Aggregate, names: Sequence[str], count: int) -> list[list[Any]]:
    """Features of each behaviour that are frequent in its graphs and not in the others'.

    Returns:
        For each behaviour at most `count` features (layer, number) of frequency `OFTEN` or more,
        those first whose frequency is highest above the mean over the other behaviours.
    """
    often: dict[tuple[int, int], dict[str, float]] = {}
    for row in found.nodes.to_pylist():
        if row["kind"] == "feature":
            often.setdefault((row["layer"], int(row["name"])), {})[row["group"]] = row["frequency"]
    circuits = []
    for name in names:
        above = {
            place: of[name] - (sum(of.values()) - of[name]) / max(1, len(names) - 1)
            for place, of in often.items()
            if of.get(name, 0.0) >= OFTEN
        }
        circuits.append(sorted(above, key=lambda place: (-above[place], place))[:count])
    return circuits


def chosen(
    model: ReplacementModel,
    found: tracer.Aggregate,
    prompts: dict[str, list[Prompt]],
) -> tuple[int, dict[str, float | None]]:
    """How many distinctive features: the fewest that reach what is asked, or do best.

    Returns:
        The number, and the ratio of every number that was tried, on these prompts.
    """
    names = list(prompts)
    sets = [distinctive(found, names, count) for count in COUNTS]
    whole = table(model, prompts, [circuit for circuits in sets for circuit in circuits])
    ratios = {
        count: summed_up(names, circuits, part)["ratio"]
        for count, circuits, part in zip(COUNTS, sets, np.split(whole, len(sets)), strict=True)
    }
    known = {count: ratio for count, ratio in ratios.items() if ratio is not None}
    enough = [count for count in COUNTS if known.get(count, 0.0) >= ASKED]
    best = enough[0] if enough else max(known, key=lambda count: known[count], default=COUNTS[0])
    return best, {str(count): ratio for count, ratio in ratios.items()}


def described(found: tracer.Aggregate, name: str, places: Places) -> dict[str, Any]:
    """A consensus circuit, its features with their frequencies, and how stable it is."""
    nodes, edges = found.consensus(name, FREQUENCY)
    numbers = ("frequency", "frequency_low", "frequency_high", "influence", "low", "high")
    return {
        "features": [
            {"layer": row["layer"], "feature": int(row["name"]), "label": row["label"]}
            | {number: round(row[number], 4) for number in numbers}
            for row in nodes.to_pylist()
            if row["kind"] == "feature"
        ],
        "edges": edges.num_rows,
        "own": len(places),
        "stability": [round(one, 4) for one in found.stability(name, FREQUENCY)],
    }


@torch.no_grad()
def measure(traced: int, tested: int) -> dict[str, Any]:
    """Everything that is written."""
    model = ReplacementModel.load()
    drawn = {
        name: answered(model, prompts, traced + tested)
        for name, prompts in every_behaviour(model).items()
    }
    names = list(drawn)
    asked = [
        {"prompt": prompt.text, "behaviour": name}
        for name, prompts in drawn.items()
        for prompt in prompts[:traced]
    ]
    with TemporaryDirectory() as folder:
        dataset = tracer.trace_many(model, asked, Path(folder) / "graphs")
        found = tracer.aggregate(dataset, "behaviour")
    circuits = [found.features(name, FREQUENCY) for name in names]
    own = [
        [
            one
            for one in circuit
            if all(one not in other for other in circuits if other is not circuit)
        ]
        for circuit in circuits
    ]
    others = {name: prompts[traced:] for name, prompts in drawn.items()}
    count, ratios = chosen(model, found, {name: some[:CHOICE] for name, some in drawn.items()})
    apart = distinctive(found, names, count)
    return {
        "prompts traced": traced,
        "prompts tested": {name: len(prompts) for name, prompts in others.items()},
        "frequency": FREQUENCY,
        "behaviours": names,
        "circuits": {
            name: described(found, name, places) for name, places in zip(names, own, strict=True)
        },
        "consensus": summed_up(names, circuits, table(model, others, circuits)),
        "own": summed_up(names, own, table(model, others, own)),
        "distinctive": {
            "features a circuit": count,
            "chosen on prompts of each behaviour": min(CHOICE, traced),
            "ratio on those by number of features": ratios,
            "features": {
                name: list(map(list, one)) for name, one in zip(names, apart, strict=True)
            },
            **summed_up(names, apart, table(model, others, apart)),
        },
    }


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    default = RESULTS / "consensus.json"
    arguments.add_argument("file", nargs="?", type=output_file)
    arguments.add_argument("--quick", action="store_true", help="Few prompts; writes no result.")
    given = arguments.parse_args()
    start = time.process_time()
    found = measure(*(QUICK if given.quick else (TRACED, TESTED)))
    for rule in ("consensus", "own", "distinctive"):
        numbers = {name: value for name, value in found[rule].items() if name != "table"}
        print(f"{rule}: {json.dumps(numbers, indent=1, ensure_ascii=False)}")
    print(f"{time.process_time() - start:.0f} CPU seconds")
    file = given.file or (None if given.quick else default)
    if file is not None:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
