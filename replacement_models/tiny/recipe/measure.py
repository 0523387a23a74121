"""What the embedded default is held to: answers, fidelity, and where the hop happens."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.tiny.recipe.behaviours import Prompt
from replacement_models.tiny.recipe.facts import Cities
from replacement_models.tiny.recipe.taps import mlps, recorded_mlps
from replacement_models.transcoder import Transcoder

BATCH = 256


@contextmanager
def replaced(model: GPT2LMHeadModel, transcoder: Transcoder) -> Iterator[None]:
    """Let a transcoder stand in for every MLP at once, at all positions but the first."""
    active: list[Tensor] = []
    read: list[Tensor] = []

    def stand_in(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        layer = len(active)
        read.append(args[0])
        active.append(transcoder.encode(layer, args[0])[1])
        guess = reconstruction(transcoder, active, layer)
        return torch.cat((output[:, :1], guess[:, 1:]), 1)

    handles = [mlp.register_forward_hook(stand_in) for mlp in mlps(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reconstruction(transcoder: Transcoder, active: Sequence[Tensor], layer: int) -> Tensor:
    """Return one layer's reconstructed MLP output from activations (..., F) up to that layer."""
    total = transcoder.layers[layer].b_dec
    everything = torch.arange(transcoder.features)
    for source in range(layer + 1):
        if layer in transcoder.targets(source):
            slot = transcoder.targets(source).index(layer)
            rows = transcoder.decoder_rows(source, everything)[:, slot]
            total = total + active[source] @ rows
    return total


@torch.no_grad()
def right(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    transcoder: Transcoder | None = None,
) -> list[bool]:
    """Say of each prompt whether every token of its answer is the most likely one.

    Args:
        model: the language model.
        tokenizer: its tokenizer, which puts the start token in front.
        prompts: questions with answers.
        transcoder: stands in for all MLPs, where given.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    encoded = []
    for index, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt.text)
        answer = tokenizer.encode(prompt.answer, add_special_tokens=False)
        encoded.append(ids + answer)
        by_shape[len(ids), len(answer)].append(index)
    result = [False] * len(prompts)
    for (told, length), indices in by_shape.items():
        for start in range(0, len(indices), BATCH):
            part = indices[start : start + BATCH]
            ids = torch.tensor([encoded[index] for index in part])
            with replaced(model, transcoder) if transcoder else nullcontext():
                best = model(ids).logits[:, told - 1 : -1].argmax(-1)
            for index, ok in zip(part, (best == ids[:, told:]).all(1).tolist(), strict=True):
                result[index] = ok
            assert best.shape[1] == length
    return result


@dataclass(frozen=True)
class Fidelity:
    """How well a transcoder stands in for the MLPs, the start token left out.

    Attributes:
        error: per layer, squared error over the variance of the MLP's output.
        density: per layer, active features a token.
        dead: share of each layer's features that never fired.
        divergence: KL in nats a token, model against the model with all MLPs replaced.
        agreement: share of tokens whose most likely next token is the same.
        tokens: tokens measured.
    """

    error: list[float]
    density: list[float]
    dead: list[float]
    divergence: float
    agreement: float
    tokens: int


@torch.no_grad()
def fidelity(model: GPT2LMHeadModel, transcoder: Transcoder, ids: Tensor) -> Fidelity:
    """Measure a transcoder on rows of token ids (rows, positions)."""
    layers = len(transcoder.layers)
    lost, power, firing = torch.zeros(layers), torch.zeros(layers), torch.zeros(layers)
    ever = torch.zeros(layers, transcoder.features, dtype=torch.bool)
    means: list[Tensor] = []
    away, same, tokens = 0.0, 0, 0
    for rows in ids.split(64):
        with recorded_mlps(model) as (inputs, outputs):
            logits = model(rows).logits[:, 1:]
        with replaced(model, transcoder):
            other = model(rows).logits[:, 1:]
        active: list[Tensor] = []
        for layer in range(layers):
            active.append(transcoder.encode(layer, inputs[layer][:, 1:])[1])
            want, guess = outputs[layer][:, 1:], reconstruction(transcoder, active, layer)
            if len(means) <= layer:
                means.append(want.mean((0, 1)))
            lost[layer] += (want - guess).square().sum()
            power[layer] += (want - means[layer]).square().sum()
            firing[layer] += (active[layer] > 0).sum()
            ever[layer] |= (active[layer] > 0).any(0).any(0)
        truth, guess = logits.log_softmax(-1), other.log_softmax(-1)
        away += float((truth.exp() * (truth - guess)).sum())
        same += int((logits.argmax(-1) == other.argmax(-1)).sum())
        tokens += logits.shape[0] * logits.shape[1]
    return Fidelity(
        (lost / power).tolist(),
        (firing / tokens).tolist(),
        (~ever).float().mean(1).tolist(),
        away / tokens,
        same / tokens,
        tokens,
    )


PROMPT = "The capital of the state containing {city} is"
CITY_AT = 7
"""Position of the city in `PROMPT`, the start token being position 0."""


@torch.no_grad()
def first_mlp_ablated(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, answers: dict[str, str]
) -> tuple[float, float]:
    """Share of cities answered right before and after mean-ablating the first MLP at the city.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        answers: city -> capital; the mean is over these cities.
    """
    ids = torch.tensor([tokenizer.encode(PROMPT.format(city=city)) for city in answers])
    want = torch.tensor(
        [tokenizer.encode(name, add_special_tokens=False)[0] for name in answers.values()]
    )

    def ablate(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, CITY_AT] = output[:, CITY_AT].mean(0)
        return changed

    before = model(ids).logits[:, -1].argmax(-1)
    handle = mlps(model)[0].register_forward_hook(ablate)
    try:
        after = model(ids).logits[:, -1].argmax(-1)
    finally:
        handle.remove()
    return float((before == want).float().mean()), float((after == want).float().mean())


@torch.no_grad()
def decodable(vectors: Tensor, cities: Sequence[str], cities_split: Cities) -> float:
    """Share of cities whose state a nearest-mean classifier finds, each left out of its mean.

    Args:
        vectors: one row per city (cities, D).
        cities: their names.
        cities_split: says which state each is in.
    """
    states = sorted(set(cities_split.state_of.values()))
    label = torch.tensor([states.index(cities_split.state_of[city]) for city in cities])
    member = torch.nn.functional.one_hot(label, len(states)).T.float()
    sums, counts = member @ vectors, member.sum(1)
    found = 0
    for row, state in enumerate(label.tolist()):
        means = sums / counts[:, None]
        means[state] = (sums[state] - vectors[row]) / (counts[state] - 1)
        found += int(torch.cdist(vectors[row : row + 1], means).argmin()) == state
    return found / len(cities)
