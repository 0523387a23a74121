"""What the embedded default is held to: answers, fidelity, and where the hop happens."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.hooks import forward_hooks
from replacement_models.replaced import Where, replaced
from replacement_models.replacement import ReplacementModel
from replacement_models.tiny.recipe.behaviours import Prompt
from replacement_models.tiny.recipe.facts import Cities
from replacement_models.tiny.recipe.prompt import CITY_AT as CITY_AT
from replacement_models.tiny.recipe.prompt import PROMPT as PROMPT
from replacement_models.tiny.recipe.taps import mlps
from replacement_models.transcoder import Transcoder

BATCH = 256


AFTER_THE_START = Where(skip_positions=1, keep_tokens=())
"""All positions but the start token's, which the transcoders were not trained on."""


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
    standing: AbstractContextManager[None] = nullcontext()
    if transcoder is not None:
        whole = ReplacementModel.from_huggingface(model, tokenizer, transcoder)
        standing = replaced(whole, AFTER_THE_START)
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    encoded = []
    for index, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt.text)
        answer = tokenizer.encode(prompt.answer, add_special_tokens=False)
        encoded.append(ids + answer)
        by_shape[len(ids), len(answer)].append(index)
    result = [False] * len(prompts)
    with standing:
        for (told, length), indices in by_shape.items():
            for start in range(0, len(indices), BATCH):
                part = indices[start : start + BATCH]
                ids = torch.tensor([encoded[index] for index in part])
                best = model(ids).logits[:, told - 1 : -1].argmax(-1)
                for index, ok in zip(part, (best == ids[:, told:]).all(1).tolist(), strict=True):
                    result[index] = ok
                assert best.shape[1] == length
    return result


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

    def ablate(_: tuple[Tensor, ...], output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, CITY_AT] = output[:, CITY_AT].mean(0)
        return changed

    before = model(ids).logits[:, -1].argmax(-1)
    with forward_hooks([(mlps(model)[0], ablate)]):
        after = model(ids).logits[:, -1].argmax(-1)
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
