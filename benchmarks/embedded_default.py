"""Measure every figure of the embedded default from the committed weights.

`python -m benchmarks.embedded_default [FILE.json]` prints tables and writes the figures as JSON.
"""

import json
import random
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import tracer
from replacement_models import ReplacementModel, Transcoder, load_transcoder
from replacement_models.fidelity import fidelity
from replacement_models.tiny.recipe import measure, swaps, taps
from replacement_models.tiny.recipe.behaviours import Prompt, behaviours, two_hop_behaviour
from replacement_models.tiny.recipe.corpus import (
    SHARES,
    Encoder,
    Source,
    induction,
    pack,
    sentences,
    whole_words,
)
from replacement_models.tiny.recipe.facts import PACKAGE, load_facts, split_cities

ROWS, REPEAT_ROWS, ROWS_SEED = 1000, 60, 555
"""Rows of 64 tokens a transcoder's fidelity is measured on, and the seed of their text."""
BATCH = 64
"""Rows measured at once."""
FLAGSHIP = "The capital of the state containing Dallas is"
SITES = {"city and last": (1, 1), "city": (1, 0), "last": (0, 1)}


@dataclass(frozen=True)
class Default:
    """The committed model and what its figures are measured with."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    transcoders: dict[str, Transcoder]
    source: Source


def load_default(folder: Path = PACKAGE) -> Default:
    """Load model, tokenizer and both transcoders in float32."""
    model = GPT2LMHeadModel.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    facts = load_facts()
    cities = split_cities(facts)
    source = Source(facts, cities, cities.seen, whole_words(tokenizer))
    found = {
        name: load_transcoder(folder / name).to("cpu", torch.float32) for name in ("clt", "plt")
    }
    return Default(model.eval().requires_grad_(False), tokenizer, found, source)


def answers(default: Default) -> dict[str, dict[str, float]]:
    """Share of prompts answered right per behaviour: by the model, and with MLPs replaced."""
    source = default.source
    asked: dict[str, list[Prompt]] = behaviours(source)
    asked["two hops, choice cities"] = two_hop_behaviour(source, source.cities.choice)
    asked["two hops, TEST cities"] = two_hop_behaviour(source, source.cities.test)
    table = {}
    for name, prompts in asked.items():
        some = random.Random(0).sample(prompts, min(600, len(prompts)))
        row: dict[str, float] = {"n": len(prompts), "n replaced": len(some)}
        row["model"] = share(measure.right(default.model, default.tokenizer, prompts))
        for kind, transcoder in default.transcoders.items():
            row[kind] = share(measure.right(default.model, default.tokenizer, some, transcoder))
        table[name] = row
    return table


def share(flags: list[bool]) -> float:
    """Share of true values."""
    return sum(flags) / len(flags)


def fidelities(default: Default) -> dict[str, dict[str, Any]]:
    """How well each transcoder stands in for the MLPs, on sentences that know every city.

    Random repeats, which are no sentences, are measured apart.
    """
    cities = default.source.cities
    source = replace(default.source, two_hop=cities.seen + cities.choice + cities.test)
    encode = Encoder(default.tokenizer)
    table = {}
    for text, families, rows in (
        ("sentences", SHARES, ROWS),
        ("random repeats", {induction: 1.0}, REPEAT_ROWS),
    ):
        stream = sentences(source, ROWS_SEED, families)
        ids = torch.from_numpy(pack(stream, encode, rows, 64)[0]).long()
        for kind, transcoder in default.transcoders.items():
            model = ReplacementModel.from_huggingface(default.model, None, transcoder)
            found = fidelity(model, ids.split(BATCH), measure.AFTER_THE_START)
            by_layer = {name: list(getattr(found, name)) for name in ("error", "density", "dead")}
            table[f"{kind}, {text}"] = by_layer | asdict(found.comparison)
    return table


def hop(default: Default) -> dict[str, float]:
    """Where the state is looked up: not in the embedding, but in the first MLP at the city."""
    cities = default.source.cities
    names = sorted(cities.state_of)
    capitals = {
        city: default.source.facts["states"][cities.state_of[city]]["capital"]
        for city in cities.test
    }
    before, after = measure.first_mlp_ablated(default.model, default.tokenizer, capitals)
    ids = [default.tokenizer.encode(name)[1] for name in names]
    rows = taps.embeddings(default.model)[ids]
    inputs = torch.tensor([default.tokenizer.encode(measure.PROMPT.format(city=c)) for c in names])
    with taps.recorded_mlps(default.model) as (_, outputs):
        default.model(inputs)
    return {
        "answer": before,
        "answer, first MLP mean-ablated at the city": after,
        "state decoded from the embedding": measure.decodable(rows, names, cities),
        "state decoded from the first MLP's output": measure.decodable(
            outputs[0][:, measure.CITY_AT], names, cities
        ),
    }


def state_features(lab: swaps.Laboratory) -> dict[str, Any]:
    """Precision and recall over all cities of the feature that best marks each state."""
    cities = sorted(lab.state_of)
    active = lab.activations(cities)
    table: dict[str, Any] = {}
    for site, name in enumerate(("at the city", "at the last position")):
        found = [swaps.best_state_feature(lab, active, cities, s, site) for s in lab.states]
        texas = found[lab.states.index("Texas")]
        table[name] = {
            "Texas": asdict(texas),
            "mean precision": sum(feature.precision for feature in found) / len(found),
            "mean recall": sum(feature.recall for feature in found) / len(found),
        }
    return table


def state_swaps(lab: swaps.Laboratory, source: Source) -> dict[str, dict[str, float]]:
    """Swap every ordered pair of states on test cities, at the strength chosen beforehand."""
    profile = lab.profile(source.cities.seen)
    pairs = swaps.every_pair(lab, source.cities.test)
    table = {}
    for name, sites in SITES.items():
        swap = swaps.Swap(pairs, sites, swaps.CHOSEN)
        table[name] = asdict(swaps.run(lab, profile, swap))
    swap = swaps.Swap(pairs, SITES["city and last"], swaps.CHOSEN)
    table["control: random features"] = asdict(swaps.random_control(lab, profile, swap))
    table["control: an unrelated state"] = asdict(swaps.unrelated_control(lab, profile, swap))
    return table


def graphs(cities: tuple[str, ...]) -> dict[str, Any]:
    """Scores of the default prompt's unpruned graph, and their means over test cities."""
    model = ReplacementModel.load()
    prompts = [FLAGSHIP, *(measure.PROMPT.format(city=city) for city in cities)]
    scores = [tracer.trace(model, prompt).scores for prompt in prompts]
    best = tracer.trace(model, FLAGSHIP)
    logits = best.nodes.filter(best.nodes["kind"].to_numpy(zero_copy_only=False) == "logit")
    mean = {
        field: sum(getattr(score, field) for score in scores[1:]) / len(cities)
        for field in ("replacement", "completeness")
    }
    return {
        "answers": dict(
            zip(logits["text"].to_pylist(), logits["probability"].to_pylist(), strict=True)
        ),
        "replacement": scores[0].replacement,
        "completeness": scores[0].completeness,
        "mean over test cities": mean,
        "conservation": best.metadata["conservation"],
    }


def show(title: str, value: Any, depth: int = 0) -> None:
    """Print nested figures, one line each."""
    blank = "  " * depth
    if isinstance(value, dict):
        flat = all(not isinstance(part, dict) for part in value.values())
        if flat and depth:
            print(f"{blank}{title:44s}", "  ".join(f"{k} {brief(v)}" for k, v in value.items()))
            return
        print(f"{blank}{title}")
        for key, part in value.items():
            show(str(key), part, depth + 1)
    else:
        print(f"{blank}{title:44s} {brief(value)}")


def brief(value: Any) -> str:
    """Write a number or a list of numbers with four digits."""
    if isinstance(value, list):
        return " ".join(brief(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(path: Path | None) -> None:
    """Measure everything, print it, and write it to `path` where given."""
    start = time.time()
    transformers.utils.logging.disable_progress_bar()
    default = load_default()
    lab = swaps.Laboratory(
        default.model, default.tokenizer, default.transcoders["clt"], default.source
    )
    parts = {
        "answers": lambda: answers(default),
        "fidelity": lambda: fidelities(default),
        "hop": lambda: hop(default),
        "state features": lambda: state_features(lab),
        "state swaps": lambda: state_swaps(lab, default.source),
        "graph": lambda: graphs(default.source.cities.test[:10]),
    }
    figures: dict[str, Any] = {}
    for name, part in parts.items():
        figures[name] = part()
        show(name, figures[name])
    figures["seconds"] = time.time() - start
    print(f"{figures['seconds']:.0f} s")
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
