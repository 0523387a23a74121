"""Sparse features planted in superposition, whose circuits are known: part of `ground_truth`.

A model of two MLPs and one head that looks at the token before, with more directions on its stream
than the stream has dimensions. In the first layer a feature fires on a class of words; in the
second, where one class came before and another stands here; the answer counts some of those. Every
feature writes a direction of its own, and reads those it is planted to read by the weights that
meet all other directions least. So the circuit of a prompt is known, and what else a graph shows
is interference. The features are the MLPs' own neurons, which is one way of finding them; the
others are dictionaries trained on what the MLPs read and write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tracer
from benchmarks.brief_training import KINDS, SEEDS, STARTS, Brief
from benchmarks.found_circuits import DRAWS, Tally, edges_at_random, merged
from benchmarks.tracr.truth import OUTPUT, TOKENS, Circuit, Node
from graphs import AttributionGraph
from replacement_models import ReplacementModel
from replacement_models.tracr_model import TracrConfig, TracrForCausalLM

WORDS, CLASSES, OF_A_WORD, PAIRS, ANSWERS = 64, 24, 3, 24, 6
DIMENSIONS, LENGTH = 144, 7
"""Of the stream, positions aside; and words of a prompt behind BOS."""
BOS = WORDS
SHARP = 60.0
"""Difference of attention scores between the token before and all others."""
PROMPTS = 20
STEPS = 2000
"""Of training."""
ALIKE = 0.9
"""Cosine from which a dictionary's feature counts as a planted one."""


@dataclass(frozen=True)
class Planted:
    """What is planted, drawn by a seed."""

    seed: int

    @cached_property
    def classes(self) -> np.ndarray:
        """(words, classes) of 0 and 1."""
        drawn = np.random.default_rng([self.seed, 0])
        found = np.zeros((WORDS, CLASSES), dtype=bool)
        for row in found:
            row[drawn.choice(CLASSES, OF_A_WORD, replace=False)] = True
        return found

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Of each feature of the second layer the class before and the class here."""
        drawn = np.random.default_rng([self.seed, 1])
        chosen = drawn.choice(CLASSES**2, PAIRS, replace=False)
        return [divmod(int(one), CLASSES) for one in chosen]

    @cached_property
    def directions(self) -> dict[str, Tensor]:
        """Unit vectors that stand on the stream, (count, DIMENSIONS) each."""
        drawn = torch.Generator().manual_seed(self.seed)

        def some(count: int) -> Tensor:
            found = torch.randn(count, DIMENSIONS, generator=drawn, dtype=torch.float64)
            return found / found.norm(dim=1, keepdim=True)

        turn = torch.linalg.qr(some(DIMENSIONS)).Q
        tokens, classes, pairs = some(WORDS + 1), some(CLASSES), some(PAIRS)
        return {
            "tokens": tokens,
            "classes": classes,
            "tokens before": tokens @ turn,
            "classes before": classes @ turn,
            "pairs": pairs,
            "turn": turn,
        }

    def model(self) -> TracrForCausalLM:
        """As a model of transformers."""
        known, places = self.directions, LENGTH + 1
        width = DIMENSIONS + places
        config = TracrConfig(
            vocab_size=WORDS + 1 + ANSWERS, hidden_size=width, intermediate_size=CLASSES,
            num_hidden_layers=2, num_attention_heads=1, head_dim=DIMENSIONS,
            max_position_embeddings=places, bos_token_id=BOS,
        )  # fmt: skip
        model = TracrForCausalLM(config).double().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
            model.embed_tokens.weight[: WORDS + 1, :DIMENSIONS] = known["tokens"]
            model.embed_positions.weight[:, DIMENSIONS:] = torch.eye(places)
            self._look_back(model.layers[1].attention)
            self._plant(model.layers[0].mlp, "classes", ["tokens"], self._of_tokens())
            before = ["tokens", "classes", "tokens before", "classes before"]
            self._plant(model.layers[1].mlp, "pairs", before, self._of_classes())
            answers = torch.zeros(ANSWERS, PAIRS, dtype=torch.float64)
            answers[torch.arange(PAIRS) % ANSWERS, torch.arange(PAIRS)] = 1.0
            rows = self._reading([*before, "pairs"], {"pairs": answers})
            model.lm_head.weight[WORDS + 1 :, :DIMENSIONS] = rows
        return model

    def _look_back(self, attention: Any) -> None:
        """Every position looks at the one before, and turns what it takes from there."""
        at = torch.arange(LENGTH)
        attention.k_proj.weight[at, DIMENSIONS + at] = SHARP * DIMENSIONS**0.5
        attention.q_proj.weight[at, DIMENSIONS + at + 1] = 1.0
        attention.v_proj.weight[:, :DIMENSIONS] = self.directions["turn"].T
        attention.o_proj.weight[:DIMENSIONS] = torch.eye(DIMENSIONS)

    def _of_tokens(self) -> dict[str, Tensor]:
        """What each class is asked to read of every direction."""
        words = torch.from_numpy(self.classes.T).double()
        return {"tokens": torch.cat([words, torch.zeros(CLASSES, 1)], dim=1)}

    def _of_classes(self) -> dict[str, Tensor]:
        """What each pair is asked to read."""
        before = torch.zeros(PAIRS, CLASSES, dtype=torch.float64)
        here = before.clone()
        for row, (first, second) in enumerate(self.pairs):
            before[row, first] = here[row, second] = 1.0
        return {"classes before": before, "classes": here}

    def _reading(self, names: list[str], asked: dict[str, Tensor]) -> Tensor:
        """Rows whose products with all directions are nearest what is asked, 0 where it is not."""
        count = len(next(iter(asked.values())))
        wanted = [
            asked.get(name, torch.zeros(count, len(self.directions[name]), dtype=torch.float64))
            for name in names
        ]
        every = torch.cat([self.directions[name] for name in names])
        return torch.linalg.lstsq(every, torch.cat(wanted, dim=1).T).solution.T

    def _plant(self, mlp: Any, writes: str, names: list[str], asked: dict[str, Tensor]) -> None:
        """Units that are 1 where all that one reads is there, and 0 where a part is missing."""
        rows = self._reading(names, asked)
        parts = torch.stack(
            [(rows @ self.directions[name].T * wanted).amax(1) for name, wanted in asked.items()]
        )
        whole, lacking = parts.sum(0), parts.sum(0) - parts.amin(0)
        bound = (whole + lacking) / 2
        scale = 1 / (whole - bound)
        mlp.fc1.weight[:, :DIMENSIONS] = rows * scale[:, None]
        mlp.fc1.bias[:] = -bound * scale
        mlp.fc2.weight[:DIMENSIONS] = self.directions[writes].T

    def written(self, folder: Path) -> Path:
        """The model in a folder."""
        self.model().save_pretrained(folder)
        return folder

    def fires(self, words: list[int]) -> list[set[str]]:
        """Features that are meant to fire, by position; the first is BOS."""
        found: list[set[str]] = [set()]
        before = np.zeros(CLASSES, dtype=bool)
        for word in words:
            here = self.classes[word]
            one = {class_name(at) for at in np.flatnonzero(here)}
            one |= {pair_name(at) for at, (a, b) in enumerate(self.pairs) if before[a] and here[b]}
            found.append(one)
            before = here
        return found

    def prompts(self) -> Iterator[tuple[list[int], int]]:
        """Words whose last one ends a pair, and the answer that counts it."""
        drawn, given = np.random.default_rng([self.seed, 2]), 0
        while given < PROMPTS:
            words = drawn.integers(WORDS, size=LENGTH).tolist()
            pairs = sorted(int(one[1:]) for one in self.fires(words)[-1] if one[0] == "p")
            if pairs:
                given += 1
                yield words, pairs[0] % ANSWERS

    def circuit(self, words: list[int], answer: int) -> Circuit:
        """Of an answer at the last word."""
        last, edges = len(words), set()
        for at, (before, here) in enumerate(self.pairs):
            if at % ANSWERS != answer or pair_name(at) not in self.fires(words)[-1]:
                continue
            pair: Node = (pair_name(at), last)
            edges.add((pair, (OUTPUT, last)))
            for name, position in ((before, last - 1), (here, last)):
                read: Node = (class_name(name), position)
                edges |= {(read, pair), ((TOKENS, position), read)}
        return Circuit(frozenset(source for source, _ in edges), frozenset(edges))


def class_name(number: int) -> str:
    """Of a feature of the first layer."""
    return f"c{number}"


def pair_name(number: int) -> str:
    """Of a feature of the second layer."""
    return f"p{number}"


LAYERS = {
    **{class_name(one): 0 for one in range(CLASSES)},
    **{pair_name(one): 1 for one in range(PAIRS)},
}


@dataclass(frozen=True)
class Found:
    """A model with a dictionary, and which planted feature each of its features is."""

    planted: Planted
    model: ReplacementModel
    names: dict[tuple[int, int], str]

    def graphs(self) -> Iterator[tuple[AttributionGraph, Circuit]]:
        """Every prompt's, with the truth."""
        for words, answer in self.planted.prompts():
            row = self.model.host.unembedding[WORDS + 1 + answer]
            yield (
                tracer.trace(
                    self.model, [BOS, *words], targets=[tracer.Direction(row, OUTPUT)],
                    skip_positions=1,
                ),
                self.planted.circuit(words, answer),
            )  # fmt: skip

    def figures(self, at_random: bool = False) -> dict[str, Any]:
        """Precision and recall over prompts; with as many edges drawn at random where asked."""
        tally, chance, worst, passed = Tally(), Tally(), 0.0, []
        for number, (graph, true) in enumerate(self.graphs()):
            worst = max(worst, graph.metadata["conservation"]["relative"])
            passed.append(graph.steps)
            edges = merged(graph.prune(), self.names)
            tally.add(edges, true)
            for seed in range(DRAWS if at_random else 0):
                generator = np.random.default_rng([seed, number])
                chance.add(edges_at_random(LAYERS, LENGTH, len(edges), generator), true)
        more = {"random": chance.figures()} if at_random else {}
        return {**tally.figures(), "law": worst, "steps": float(np.mean(passed)), **more}


def by_writing(
    planted: Planted, model: ReplacementModel
) -> tuple[dict[tuple[int, int], str], float]:
    """The planted feature whose direction each feature writes most of, and how many are found.

    Returns:
        Name of a feature, by (layer, number); the share of planted features that one feature
        writes with a cosine of at least `ALIKE`, at the layer where it is planted.
    """
    known = {0: planted.directions["classes"], 1: planted.directions["pairs"]}
    makers = {0: class_name, 1: pair_name}
    names, again = {}, set()
    for layer in range(2):
        count = len(model.transcoder.layers[layer].b_enc)
        rows = model.transcoder.decoder_rows(layer, torch.arange(count))[..., :DIMENSIONS].double()
        for feature, written in enumerate(rows):
            best = (0.0, "nothing")
            for row, target in zip(written, model.transcoder.targets(layer), strict=True):
                amounts = known[target] @ row
                at = int(amounts.argmax())
                best = max(best, (float(amounts[at]), makers[target](at)))
                if target == layer and amounts[at] >= ALIKE * row.norm() > 0:
                    again.add(makers[target](at))
            names[layer, feature] = best[1]
    return names, len(again) / (CLASSES + PAIRS)


def measure(seed: int, scratch: Path) -> Iterator[dict[str, Any]]:
    """One planted model, by its neurons and by every dictionary trained for it."""
    planted = Planted(seed)
    folder = planted.written(scratch / "model")
    neurons = {
        **{(0, at): class_name(at) for at in range(CLASSES)},
        **{(1, at): pair_name(at) for at in range(PAIRS)},
    }
    model = ReplacementModel.load(folder, "neurons", dtype="float64")
    common = {"seed": seed, "prompts": PROMPTS}
    yield {
        **common, "kind": "neurons", "start": None, "again": 1.0, "error": 0.0,
        "as planted": agreement(planted, model),
        **Found(planted, model, neurons).figures(at_random=True),
    }  # fmt: skip
    for start in STARTS:
        for kind in KINDS:
            with TemporaryDirectory() as room:
                briefly = Brief(folder, range(WORDS), LENGTH, (0, 1), firing(planted), steps=STEPS)
                model, error = briefly.trained(kind, start, seed, Path(room))
            names, again = by_writing(planted, model)
            yield {
                **common, "kind": kind, "start": start, "again": again, "error": error,
                **Found(planted, model, names).figures(),
            }  # fmt: skip


def firing(planted: Planted) -> tuple[float, float]:
    """Features that fire a token, a layer each, over random words."""
    rows = np.random.default_rng(3).integers(WORDS, size=(200, LENGTH)).tolist()
    every = [one for row in rows for one in planted.fires(row)[1:]]
    pairs = [sum(name[0] == "p" for name in one) for one in every]
    return float(OF_A_WORD), float(np.mean(pairs))


def agreement(planted: Planted, model: ReplacementModel) -> float:
    """The share of features that fire where planted and nowhere else, among all firings."""
    same = every = 0
    for words, _ in planted.prompts():
        active = model.record([BOS, *words]).features
        fired = {
            (int(position), makers(int(feature)))
            for layer, position, feature in zip(
                active.layer, active.position, active.feature, strict=True
            )
            if position > 0
            for makers in [(class_name, pair_name)[int(layer)]]
        }
        meant = {(at, name) for at, some in enumerate(planted.fires(words)) for name in some}
        same, every = same + len(fired & meant), every + len(fired | meant)
    return same / every


def rows() -> Iterator[dict[str, Any]]:
    """Every seed's."""
    for seed in SEEDS:
        with TemporaryDirectory() as scratch:
            yield from measure(seed, Path(scratch))
