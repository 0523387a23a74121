"""How far to believe the embedded default's graphs: `python -m benchmarks.validation [FILE.json]`.

Validates one graph for each of some 100 prompts of all behaviours, scrubs the default prompt's
circuit, and swaps the state in every ordered pair of states, all by interventions on the unmodified
model. Some minutes on one core; everything is drawn from fixed seeds. `-n 1` takes one prompt a
behaviour, for a quick look.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tracer
from graphs import AttributionGraph
from replacement_models import ReplacementModel
from replacement_models.tiny.recipe import swaps
from replacement_models.tiny.recipe.behaviours import Prompt, behaviours, two_hop_behaviour
from replacement_models.tiny.recipe.corpus import Source, whole_words
from replacement_models.tiny.recipe.facts import load_facts, split_cities
from tracer.interventions.forward import Run, run
from tracer.interventions.values import Supernode
from tracer.validation.faithfulness import faithfulness
from tracer.validation.held import HELD, NOTHING
from tracer.validation.scrubbing import Claim, along, scrub
from tracer.validation.spread import spread
from tracer.validation.subject import subject
from tracer.validation.verdict import ENOUGH

BARE, TOLD = 6, 1
"""Prompts of each behaviour: the bare question, and the question after other sentences."""
SEED = 11
SITES = {"city and last": (1, 1), "city": (1, 0)}
GRID = tuple(product((0.05, 0.1, 0.3), (0.0, -1.0), (2.0, 3.0, 4.0, 6.0)))
MULTIPLES = (1.0, 1.5, 2.0, 3.0, 4.0)
CHOICE_PAIRS = 300
"""Ordered pairs that a strength is chosen on; none of their cities is tested."""
CONTROLS = 100
"""Ordered pairs of test cities that random features of equal write norm are tried on."""
ASKED, CITY = "The capital of the state containing {} is", "Dallas"
FOREIGN, SCRUBS = 200, 256
"""Cities of other states that scrubbing draws from, and how often."""
Pairs = Sequence[tuple[str, int]]
"""A city, and the number of the state its features are swapped for."""
TARGETS = {
    "swap, city and last": 0.95,
    "swap, city alone": 0.95,
    "Spearman, influence": 0.8,
    "cosine, one layer on": 0.9,
    "cosine, one layer on, attention and norms answering": 0.9,
    "circuit with its errors": 0.8,
    "circuit with its errors, silent features left": 0.8,
    "circuit with its errors, above nothing": 0.8,
    "circuit with its errors, attention held": 0.8,
    "circuit with its errors, attention and norms held": 0.8,
    "circuit of the lead with its errors": 0.8,
    "random circuits (below)": 0.2,
}


def embedded_source(model: ReplacementModel) -> Source:
    """What the embedded default's sentences are drawn from."""
    facts = load_facts()
    cities = split_cities(facts)
    return Source(facts, cities, cities.seen, whole_words(model.tokenizer))


def chosen_prompts(source: Source, count: int) -> list[tuple[str, Prompt]]:
    """Some prompts of every behaviour, two hops about unseen cities included."""
    every = behaviours(source)
    every["two hops, TEST cities"] = two_hop_behaviour(source, source.cities.test)
    found = []
    for name, prompts in every.items():
        drawn = random.Random(SEED).sample(prompts, len(prompts))
        bare = [prompt for prompt in drawn if ". " not in prompt.text]
        told = [prompt for prompt in drawn if ". " in prompt.text]
        found += [(name, prompt) for prompt in [*bare[:count], *told[: count and TOLD]]]
    return found


def validated(
    model: ReplacementModel, prompts: Sequence[tuple[str, Prompt]], means: Any
) -> list[dict[str, Any]]:
    """The summary of each prompt's graph, and the circuits of a second one.

    Circuits are held to the target's lead over its strongest competitor. The default graph explains
    the likeliest logits; the second one explains that very difference.
    """
    rows = []
    for number, (behaviour, prompt) in enumerate(prompts):
        graph = tracer.trace(model, prompt.text)
        found = tracer.validate(model, graph, means, others=model.corpus and model.corpus())
        curve = {f"circuit at {row['nodes']}": row["circuit"] for row in found.circuits.to_pylist()}
        named = {"behaviour": behaviour, "prompt": prompt.text}
        rows.append(named | figures(found.summary) | curve | lead_circuits(model, graph, means))
        print(f"\r{number + 1} of {len(prompts)}", end="", flush=True)
    print()
    return rows


def lead_circuits(
    model: ReplacementModel, graph: AttributionGraph, means: Any
) -> dict[str, float | None]:
    """What circuits keep of the lead when the graph is traced for the lead itself."""
    known = subject(model, graph)
    question = tracer.Difference(known.aim.plus, known.aim.rival)
    traced = tracer.trace(model, known.recording.tokens, targets=[question])
    kept = faithfulness(subject(model, traced), means).summary()
    return {f"circuit of the lead, {name}": value for name, value in circuits(kept).items()}


def figures(summary: dict[str, Any]) -> dict[str, float | None]:
    """The figures of one validation that the table shows."""
    ranks, other = summary["spearman"], summary["specificity"]
    found = {"features": summary["features"], "Spearman, influence": ranks["influence"]}
    for name in ("top_half", "feature_to_feature", "activation", "direct"):
        found[f"Spearman, {name}"] = ranks[name]
    for frozen, steps in summary["responses"].items():
        held = "" if frozen == "nothing" else f", {frozen} frozen"
        for distance, row in steps.items():
            found[f"cosine, {distance} on{held}"] = row["cosine"]
            found[f"median cosine, {distance} on{held}"] = row["cosine_median"]
            found[f"error, {distance} on{held}"] = row["error_median"]
    for answering, steps in summary["first_order"].items():
        for distance, row in steps.items():
            found[f"cosine, {distance} on, {answering}"] = row["cosine"]
            found[f"median cosine, {distance} on, {answering}"] = row["cosine_median"]
    kept = circuits(summary["faithfulness"])
    found |= {f"circuit, {name}": value for name, value in kept.items()}
    if (cut := summary["composition"]) is not None:
        found["composition, edges cut"] = cut["cut"][NOTHING]
        found["composition, others cut"] = cut["others_cut"][NOTHING]
    found["specificity, own lead"] = other["own"]
    found["specificity, median lead of others"] = other["lead"]["median"]
    return found | {"specificity, share of others changed": other["changed"]}


def circuits(kept: dict[str, Any]) -> dict[str, float | None]:
    """The figures of one graph's circuits, with nothing held and held."""
    found: dict[str, float | None] = {}
    names = ("circuit", "above_empty", "silent_left", "without_errors", "rest", "empty", "ablated")
    for held in HELD:
        part, suffix = kept["held"][held], "" if held == NOTHING else f", {held} held"
        found |= {f"{name}{suffix}": part[name] for name in names}
        found[f"random{suffix}"] = part["random"]
        found[f"random ablated{suffix}"] = part["random_ablated"]["median"]
        found[f"nodes that matter{suffix}"] = part["minimal"]
    return found


def spreads(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How every figure spreads over the prompts that have it, and the share that is ENOUGH."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = {}
    for name in names:
        known = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if known:
            enough = float((np.array(known) >= ENOUGH).mean())
            table[name] = {**spread(known), f"from_{ENOUGH}": enough}
    return table


def scrubbed(model: ReplacementModel, source: Source) -> dict[str, Any]:
    """Scrub the default prompt's circuit: of the city only the state is said to matter."""
    state, graph = source.cities.state_of, tracer.trace(model, ASKED.format(CITY))
    length = len(model.tokenize(ASKED.format(CITY)))
    fit = [one for one in source.cities.seen if len(model.tokenize(ASKED.format(one))) == length]
    same = [one for one in fit if state[one] == state[CITY]]
    other = [one for one in fit if state[one] != state[CITY]]
    cities = [*same, *random.Random(SEED).sample(other, FOREIGN)]
    value = {ASKED.format(one): state[one] for one in [*cities, CITY]}.__getitem__
    small, at = graph.prune(), graph.metadata["tokens"].index(f" {CITY}")
    places = [
        (node["layer"], node["position"], node["feature"])
        for node in small.nodes.to_pylist()
        if node["kind"] == "feature"
    ]
    claims = [
        Claim(Supernode("question", tuple(p for p in places if p[1] < at)), lambda _: "capital"),
        Claim(Supernode("city", tuple(p for p in places if p[1] == at)), value),
        Claim(Supernode("last", tuple(p for p in places if p[1] > at)), value),
    ]
    stated = along(small, "the city's state", claims, [ASKED.format(one) for one in cities])
    lead = subject(model, graph).aim.lead
    found = scrub(model, ASKED.format(CITY), stated, lead, draws=SCRUBS, seed=SEED)
    return found.summary() | {"same_state": len(same), "other_states": FOREIGN}


def swapped(model: ReplacementModel, source: Source) -> dict[str, Any]:
    """Swap every ordered pair of states on test cities, at a strength chosen on other cities."""
    lab = swaps.Laboratory(model.host.model, model.tokenizer, model.transcoder, source)
    profile = lab.profile(source.cities.seen)
    choice = swaps.ordered_pairs(lab, source.cities.choice)
    choice = random.Random(SEED).sample(choice, CHOICE_PAIRS)
    test = swaps.ordered_pairs(lab, source.cities.test)
    table: dict[str, Any] = {}
    for name, sites in SITES.items():
        swap = swaps.Swap(test, sites, swaps.CHOSEN)
        table[name] = answered(model, lab, test, swaps.changes(lab, profile, swap))
        best = strongest(lab, profile, replace(swap, pairs=choice))
        change = swaps.changes(lab, profile, replace(swap, strength=best))
        table[f"{name}, own strength"] = answered(model, lab, test, change) | asdict(best)
        most = max(
            MULTIPLES, key=lambda k: flips(lab, choice, shifted(lab, profile, choice, sites, k))
        )
        change = shifted(lab, profile, test, sites, most)
        table[f"{name}, mean of all features"] = answered(model, lab, test, change) | {
            "times": most
        }
        few = random.Random(SEED).sample(test, CONTROLS)
        change = shifted(lab, profile, few, sites, most)
        moved = swaps.scrambled(lab, change, profile)
        table[f"{name}, control: random features"] = answered(model, lab, few, moved)
    return table


def strongest(lab: swaps.Laboratory, profile: swaps.Profile, swap: swaps.Swap) -> swaps.Strength:
    """The strength that flips most of some pairs of choice cities."""
    tried = [swaps.Strength(*setting) for setting in GRID]
    return max(tried, key=lambda s: swaps.run(lab, profile, replace(swap, strength=s)).flipped)


def shifted(
    lab: swaps.Laboratory,
    profile: swaps.Profile,
    pairs: Pairs,
    sites: tuple[int, int],
    multiple: float,
) -> Tensor:
    """The difference of all features' means on the two states' cities, times a multiple."""
    source = torch.tensor([lab.states.index(lab.state_of[city]) for city, _ in pairs])
    target = torch.tensor([state for _, state in pairs])
    change = multiple * (profile.mean[target] - profile.mean[source])
    return change * torch.tensor(sites)[:, None, None]


def flips(lab: swaps.Laboratory, pairs: Pairs, change: Tensor) -> float:
    """Share of pairs whose answer becomes the target's capital."""
    return swaps.outcome(lab, pairs, change).flipped


@torch.no_grad()
def answered(
    model: ReplacementModel, lab: swaps.Laboratory, pairs: Pairs, changes: Tensor
) -> dict[str, float]:
    """Carry out changes by interventions in mode "free" and count the answers."""
    capitals = lab.capital_tokens()
    flipped = kept = 0
    for start in range(0, len(pairs), 128):
        some = pairs[start : start + 128]
        ids = lab.prompts([city for city, _ in some])
        edit = Added(changes[start : start + 128])
        logits = run(model, ids, Run(edit=edit, keep=False)).logits[:, -1]
        for answer, (city, state) in zip(logits.argmax(-1).tolist(), some, strict=True):
            flipped += answer == capitals[state]
            kept += answer == capitals[lab.states.index(lab.state_of[city])]
    return {"flipped": int(flipped) / len(pairs), "kept": int(kept) / len(pairs)}


@dataclass(frozen=True)
class Added:
    """The edit that adds given changes to activations at the two sites, a row for each."""

    table: Tensor
    """(rows, sites, layers, F)."""

    def reads(self, layer: int) -> bool:
        """Whether this layer changes in some row."""
        return bool(self.table[:, :, layer].any())

    def changes(self, layer: int, active: Tensor) -> tuple[Tensor, Tensor] | None:
        """The features that change, and by how much at each position."""
        mine = self.table[:, :, layer]
        used = mine.flatten(0, 1).any(0).nonzero()[:, 0]
        amount = active.new_zeros(*active.shape[:2], len(used))
        amount[:, list(swaps.SITES)] = mine[..., used]
        return used, amount

    def output(self, layer: int, x: Tensor, output: Tensor) -> Tensor:
        """Leaves the output alone."""
        return output


def compared(table: dict[str, dict[str, Any]], swap: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and the median that was."""

    def middle(name: str) -> float:
        return float(table[name]["median"])

    got = {
        "swap, city and last": swap["city and last, mean of all features"]["flipped"],
        "swap, city alone": swap["city, mean of all features"]["flipped"],
        "Spearman, influence": middle("Spearman, influence"),
        "cosine, one layer on": middle("cosine, 1 on"),
        "cosine, one layer on, attention and norms answering": middle(
            "cosine, 1 on, attention and norms answer"
        ),
        "circuit with its errors": middle("circuit, circuit"),
        "circuit with its errors, silent features left": middle("circuit, silent_left"),
        "circuit with its errors, above nothing": middle("circuit, above_empty"),
        "circuit with its errors, attention held": middle("circuit, circuit, attention held"),
        "circuit with its errors, attention and norms held": middle(
            "circuit, circuit, attention and norms held"
        ),
        "circuit of the lead with its errors": middle("circuit of the lead, circuit"),
        "random circuits (below)": middle("circuit, random"),
    }
    return {
        name: {
            "target": target,
            "got": got[name],
            "reached": got[name] < target if "below" in name else got[name] >= target,
        }
        for name, target in TARGETS.items()
    }


def show(title: str, lines: Iterable[tuple[str, Any]]) -> None:
    """Print names and values."""
    print(f"\n{title}")
    for name, value in lines:
        shown = f"{value:.3f}" if isinstance(value, float) else value
        if isinstance(value, dict):
            shown = "  ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        print(f"  {name:52s} {shown}")


def main() -> None:
    """Measure, print, and write JSON where a file is named."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", nargs="?", type=Path)
    arguments.add_argument("-n", type=int, default=BARE, help="bare prompts a behaviour")
    given = arguments.parse_args()
    start, model = time.time(), ReplacementModel.load()
    source = embedded_source(model)
    swap = swapped(model, source)
    show("State swaps, all ordered pairs of test cities", swap.items())
    means = tracer.corpus_means(model, model.corpus() if model.corpus else [])
    rows = validated(model, chosen_prompts(source, given.n), means)
    table = spreads(rows)
    show(f"Spread over {len(rows)} prompts", table.items())
    scrubbing = scrubbed(model, source)
    show("Causal scrubbing of the default prompt's circuit", scrubbing.items())
    targets = compared(table, swap)
    show("Targets", targets.items())
    print(f"\n{time.time() - start:.0f} s")
    if given.file is not None:
        found = {"targets": targets, "spread": table, "scrubbing": scrubbing, "swaps": swap}
        found["prompts"] = rows
        given.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
