"""Every architecture that `tracer train` has, each trained briefly on one layer of a real model.

`python -m benchmarks.architectures MODEL CORPUS FOLDER`: autoencoders of the stream and of what MLP
and attention write, per-layer transcoders without and with a linear skip, cross-layer ones (three
layers, each writing to two; to all above; tied; with a skip), by every activation and with
Matryoshka prefixes. Of each: the L0 asked for, and reached on text that neither training nor the
final thresholds have seen; error beside the best affine map; dead features; tokens a CPU second,
activations read from a cache. Transcoders are traced on the beginning of that text, MLPs that have
none being error. Interrupted, the same command goes on; without FOLDER everything is done anew.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import tracer
from benchmarks.output import RESULTS, output_file
from replacement_models import ReplacementModel, load_transcoder
from replacement_models.replaced import special_tokens
from replacement_models.speed.choice_file import processor_name
from replacement_models.text.documents import documents
from replacement_models.training.config import TrainConfig
from replacement_models.training.finish import worth
from replacement_models.training.harvest import Harvester, joined
from replacement_models.training.scales import Scale
from replacement_models.training.source import Cache
from replacement_models.training.text import packed
from replacement_models.training.trainee import Batch
from tracer.evaluation.baselines import fit, standing
from tracer.evaluation.subject import subject_of

KINDS: dict[str, dict[str, Any]] = {
    "SAE, stream": {"kind": "sae", "site": "resid_pre"},
    "SAE, MLP output": {"kind": "sae", "site": "mlp_out"},
    "SAE, attention output": {"kind": "sae", "site": "attn_out"},
    "per-layer": {"kind": "per_layer"},
    "per-layer, skip": {"kind": "per_layer", "skip": True},
    "cross-layer, window of 2": {"kind": "cross_layer", "span": 2},
    "cross-layer, all above": {"kind": "cross_layer"},
    "cross-layer, tied": {"kind": "cross_layer", "tied": True},
    "cross-layer, skip": {"kind": "cross_layer", "span": 2, "skip": True},
}
ACTIVATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "JumpReLU": {"dictionary": {"activation": "jump_relu"}},
    "ReLU, L1": {"dictionary": {"activation": "relu"}, "loss": {"penalty": "l1"}},
    "TopK": {"dictionary": {"activation": "topk"}},
    "BatchTopK": {"dictionary": {"activation": "batch_topk"}},
    "Gated": {"dictionary": {"activation": "gated"}},
    "Matryoshka": {"dictionary": {"activation": "jump_relu", "prefixes": True}},
}
IN_ALL = ("SAE, stream", "per-layer", "cross-layer, window of 2")
"""Kinds that are trained with every activation; the others with these two."""
FIRST, IN_REST = "JumpReLU", "TopK"
ALLOWED = 0.1
"""How far L0 may be off, as a share of what was asked for."""
APART = 10
"""Of so many documents one is kept for measuring."""
BEGINNING = 1000
"""Letters that are read of each document: L0 differs from one to the next by a third."""
LAYERS = 3
"""Of a cross-layer transcoder."""


@dataclass(frozen=True)
class Plan:
    """How long, how wide."""

    features: int = 2048
    l0: float = 32.0
    prefixes: tuple[int, ...] = (256, 1024)
    tokens: int = 76_800
    """Trained on, each once."""
    text: int = 114_000
    """Different tokens: those trained on, and some 16,000 more to set thresholds on."""
    fresh: int = 8192
    """Tokens that are measured on."""
    batch: int = 512
    context: int = 128
    prompt: int = 12
    """Tokens of the prompt that is traced."""
    cases: Sequence[tuple[str, str]] = (
        *((kind, FIRST) for kind in KINDS),
        *((kind, one) for one in ACTIVATIONS if one != FIRST for kind in IN_ALL),
        *((kind, IN_REST) for kind in KINDS if kind not in IN_ALL),
    )
    """Kinds and activations, every kind once before the others."""


@dataclass(frozen=True)
class Laboratory:
    """A model, its text in two parts, and where runs are kept."""

    name: str
    corpus: str
    folder: Path
    plan: Plan = field(default_factory=Plan)
    seen: dict[str, Batch] = field(default_factory=dict)
    """What `fresh` found, by cache."""

    @cached_property
    def model(self) -> ReplacementModel:
        """Without a dictionary."""
        return ReplacementModel.without_dictionary(self.name)

    @cached_property
    def training_text(self) -> Path:
        """A file of the documents that are trained on; the others stand in `fresh.jsonl`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts: tuple[list[str], list[str]] = ([], [])
        for number, document in enumerate(documents(self.corpus)):
            some = document if isinstance(document, str) else list(map(int, document))
            parts[number % APART == 0].append(json.dumps({"text": some[:BEGINNING]}))
        for name, lines in zip(("training", "fresh"), parts, strict=True):
            (self.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        return self.folder / "training.jsonl"

    def config(self, kind: str, activation: str) -> TrainConfig:
        """The run of one architecture."""
        plan = self.plan
        sections = {"dictionary": {"features": plan.features, "l0": plan.l0}, "loss": {}}
        for some in ({"dictionary": KINDS[kind]}, ACTIVATIONS[activation]):
            for section, values in some.items():
                sections[section] |= values
        if sections["dictionary"].get("prefixes"):
            sections["dictionary"]["prefixes"] = list(plan.prefixes)
        last = len(self.model.host.blocks) * 3 // 5
        layers = range(last - LAYERS + 1, last + 1) if kind.startswith("cross") else [last]
        sections["dictionary"]["layers"] = list(layers)
        return TrainConfig.of(
            {
                "output": str(self.folder / _file_name(f"{kind}, {activation}")),
                "model": self.name,
                **sections,
                "start": {"tokens": 8 * plan.batch},
                "data": {
                    "corpus": str(self.training_text),
                    "context": plan.context,
                    "max_tokens": plan.text,
                    "buffer": 16 * plan.batch,
                    "held_out": 0.1,
                    "held_out_tokens": 2048,
                    "prompts": 0,
                    "cache": str(self.folder / f"activations_{_place(sections['dictionary'])}"),
                },
                "run": {"tokens": plan.tokens, "batch": plan.batch, "threads": 1, "log_every": 1},
            }
        )

    def filled(self, config: TrainConfig) -> TrainConfig:
        """The same run once its activations are in the cache, by a run that is thrown away."""
        made = Path(f"{config.data.cache}_made")
        if not (made / "summary.json").is_file():
            small = config.as_mapping()
            small["output"] = str(made)
            small["dictionary"] |= {"features": 16, "l0": 1, "activation": "topk", "prefixes": []}
            small["run"]["tokens"] = self.plan.text
            tracer.train(small)
        return config

    @torch.no_grad()
    def fresh(self, config: TrainConfig) -> Batch:
        """What a run's layers read and write on text that it has not seen."""
        place = str(config.data.cache)
        if place not in self.seen:
            layers = config.dictionary.layers or ()
            harvester = Harvester(self.model, config, layers, special_tokens(self.model))
            found, size = [], config.data.rows
            for at in range(0, len(self.rows), size):
                found.append(harvester(self.rows[at : at + size]))
                if sum(map(len, found)) >= self.plan.fresh:
                    break
            self.seen[place] = joined(found).rows(slice(0, self.plan.fresh))
        return self.seen[place]

    @cached_property
    def rows(self) -> np.ndarray:
        """The text kept apart, as rows of tokens."""
        apart = {"corpus": str(self.training_text.with_name("fresh.jsonl"))}
        shape = {"context": self.plan.context, "max_tokens": 2 * self.plan.fresh}
        return packed(TrainConfig.of({"data": apart | shape}), self.model, self.folder).tokens


def _file_name(words: str) -> str:
    return words.replace(", ", "_").replace(" ", "_")


def _place(dictionary: dict[str, Any]) -> str:
    """What tells one cache from another."""
    place = dictionary.get("site", "mlp")
    return f"{place}_{len(dictionary['layers'])}"


def row_of(laboratory: Laboratory, kind: str, activation: str) -> dict[str, Any]:
    """Train one architecture, and measure it."""
    config = laboratory.filled(laboratory.config(kind, activation))
    run = tracer.train(config)
    summary, layers = run.summary, run.summary["layers"]
    held, outliers = laboratory.fresh(config), config.loss.outliers
    scales = [Scale.of(y, outliers) for y in held.outputs]
    dictionary = load_transcoder(run.transcoder)
    found = worth(dictionary, layers, scales, held, outliers, affine=False)
    lines = (run.folder / "log.jsonl").read_text("utf-8").splitlines()
    l0 = config.dictionary.l0[0]
    row = {
        "kind": kind,
        "activation": activation,
        "wanted_l0": l0,
        "l0": found.l0,
        "l0_before_thresholds_moved": json.loads(lines[-1])["layers"]["l0"],
        "met": all(abs(one / l0 - 1) <= ALLOWED for one in found.l0),
        "error": found.error_weighted,
        "error_unweighted": found.error,
        "affine": None,
        "dead": found.dead,
        "thresholds_moved": summary["thresholds_moved"],
        "cpu_seconds": summary["start_cpu_seconds"] + summary["cpu_seconds"],
        "tokens_a_cpu_second": summary["tokens"] / summary["cpu_seconds"],
        "trace": None,
    }
    if not kind.startswith("SAE"):  # which such a map would copy
        row["affine"] = affine_errors(laboratory, config, held, scales)
        row["divergence"] = summary["replaced"]["divergence"]
        row["trace"] = traced(laboratory, run.transcoder, layers)
    return row


def affine_errors(
    laboratory: Laboratory, config: TrainConfig, held: Batch, scales: Sequence[Scale]
) -> list[float]:
    """Weighted errors of the best affine map of each layer, fitted on the text trained on."""
    layers = tuple(config.dictionary.layers or ())
    cache = Cache(Path(str(config.data.cache)), layers, torch.float32, torch.device("cpu"))
    parts = [cache.read(number) for number in takewhile(cache.has, count())]
    seen, found = joined([one for one in parts if one is not None]), []
    for at, scale in enumerate(scales):
        guess = fit(seen.inputs[at], seen.outputs[at], maps=True).guesses(held.inputs[at])[1]
        weight = scale.weight(held.outputs[at], config.loss.outliers)
        left = weight * (held.outputs[at] - guess).square().sum(1)
        variance = scale.deviation**2 * guess.shape[1]
        found.append(float(left.sum() / (weight.sum() * variance)))
    return found


def traced(laboratory: Laboratory, transcoder: Path, layers: Sequence[int]) -> dict[str, Any]:
    """A graph of the beginning of fresh text; every MLP without a dictionary is error."""
    tokens = [int(token) for token in laboratory.rows[0, : laboratory.plan.prompt]]
    model = subject_of(laboratory.model, transcoder).model
    nothing = [(None, torch.zeros(model.host.d_model)) for _ in layers]
    bare = tracer.trace(standing(model, layers, nothing), tokens)
    graph = tracer.trace(model, tokens)
    carried = {"feature": 0.0, "error": 1e-12}
    for node in graph.nodes.select(["kind", "layer", "influence"]).to_pylist():
        if node["layer"] in layers:
            carried[node["kind"]] += node["influence"]
    return {
        "features": graph.metadata["active_features"],
        "conservation": graph.metadata["conservation"]["relative"],
        "replacement": graph.scores.replacement,
        "completeness": graph.scores.completeness,
        "of_nothing": {
            name: getattr(bare.scores, name) for name in ("replacement", "completeness")
        },
        "carried_by_features": carried["feature"] / sum(carried.values()),
    }


def shown(row: dict[str, Any]) -> str:
    """A row of the table, layers averaged."""
    cells = [row["kind"], row["activation"], f"{row['wanted_l0']:g}", _range(row["l0"])]
    cells += [_range(row["l0_before_thresholds_moved"]), f"{fmean(row['error']):.3f}"]
    cells.append("" if row["affine"] is None else f"{fmean(row['affine']):.3f}")
    cells += [f"{100 * fmean(row['dead']):.1f} %", f"{row['tokens_a_cpu_second']:,.0f}"]
    graph = row["trace"]
    if graph is not None:
        cells += [f"{graph['conservation']:.0e}", f"{graph['carried_by_features']:.2f}"]
        cells.append(f"{graph['completeness']:.3f} ({graph['of_nothing']['completeness']:.3f})")
    return "| " + " | ".join(cells + [""] * (len(TITLES) - len(cells))) + " |"


def _range(values: Sequence[float]) -> str:
    least, most = (f"{one:.1f}" for one in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


TITLES = (
    *("kind", "activation", "L0 asked for", "reached", "before thresholds moved", "error"),
    *("affine alone", "dead", "tokens a CPU second", "conservation", "carried by features"),
    "completeness (of nothing)",
)


def main(arguments: Sequence[str] | None = None, plan: Plan | None = None) -> None:
    """Measure, print as it comes, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a model with MLPs")
    parser.add_argument("corpus", help="text, as `tracer train` reads it")
    parser.add_argument("folder", type=Path, help="where runs are kept")
    parser.add_argument("--only", default="", help="kinds that begin so, such as SAE")
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "architectures.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = plan or Plan()
    laboratory = Laboratory(args.model, args.corpus, args.folder, plan)
    found: dict[str, Any] = {
        "processor": processor_name(),
        "model": Path(args.model).name,
        **{name: getattr(plan, name) for name in ("features", "tokens", "text", "fresh", "batch")},
    }
    before = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    done = before.pop("rows", []) if args.folder.is_dir() else []
    known = {(row["kind"], row["activation"]): row for row in done if before == found}
    print("| " + " | ".join(TITLES) + " |", "|---" * len(TITLES) + "|", sep="\n", flush=True)
    for case in (case for case in plan.cases if case[0].startswith(args.only)):
        known[case] = known.get(case) or row_of(laboratory, *case)
        print(shown(known[case]), flush=True)
        text = json.dumps(found | {"rows": list(known.values())}, indent=1) + "\n"
        args.out.write_text(text, encoding="utf-8")
    missed = [", ".join(case) for case, row in known.items() if not row["met"]]
    print(f"L0 missed by more than {ALLOWED:.0%}: {'; '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
