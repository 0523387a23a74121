"""Train the language model of the embedded default.

Two things make the hop from city to state happen in the first MLP, where a transcoder can show it.
The input embeddings are frozen at random values, so no row knows its city's state. And for half of
the cities in sentences about states, everything but the first MLP sees another city's embedding:
what later layers need to know about the city must be written by the first MLP at its position.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.tiny.recipe.corpus import (
    ANSWER,
    CITY,
    FAMILIES,
    NOISE,
    Encoder,
    Family,
    Source,
    induction,
    long_induction,
    mixture,
    pack,
    sentences,
    successor,
)
from replacement_models.tiny.recipe.taps import embeddings, first_norm, mlps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stretch of training with optimisers of its own.

    Attributes:
        steps: steps taken.
        horizon: steps after which the cosine would reach `final`; more than `steps` cuts it short.
        muon_rate: peak learning rate of the blocks' matrices.
        final: share of the peak that the cosine falls to.
        families: what sentences are drawn from, with their shares.
        seed: of sentences and of what is drawn about them.
        adam_rate: peak learning rate of everything else.
        agreement: weight of the pull that makes the first MLP say the same of all cities of a
            state (see `StateMeans`).
    """

    steps: int
    horizon: int
    muon_rate: float
    final: float
    families: Mapping[Family, float]
    seed: int
    adam_rate: float = 2e-3
    agreement: float = 0.0


def oftener(families: Mapping[Family, float], family: Family) -> dict[Family, float]:
    """Return the shares with one family's doubled."""
    return {**families, family: 2 * families[family]}


STAGES = (
    Stage(4000, 6500, 0.01, 0.03, mixture(long_induction, 0.07), 0),
    Stage(600, 1500, 0.01, 0.5, mixture(induction, 0.3), 7),
    Stage(3200, 3200, 0.008, 0.02, mixture(induction, 0.12), 8),
    Stage(1400, 1400, 0.004, 0.02, mixture(induction, 0.12), 9, 1e-3, agreement=1.0),
    Stage(400, 400, 6e-4, 0.02, oftener(mixture(induction, 0.15), successor), 12, 2e-4, 1.0),
)
"""Facts; repeats, which form nothing before they are frequent; all of it; one code a state; at last
more counting."""


@dataclass(frozen=True)
class ModelRecipe:
    """Every other number of the language model's training."""

    width: int = 128
    layers: int = 4
    heads: int = 8
    context: int = 64
    rows: int = 16
    decay: float = 0.1
    warmup: int = 100
    embedding_scale: float = 0.1
    context_share: float = 0.2
    swap_share: float = 0.5
    probe_every: int = 200
    seed: int = 0
    stages: tuple[Stage, ...] = STAGES


def new_model(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Return an untrained model with frozen random input embeddings and an untied output."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(recipe.seed)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        embeddings(model).normal_(0.0, recipe.embedding_scale)
    embeddings(model).requires_grad_(False)
    return model


@contextmanager
def first_mlp_sees(model: GPT2LMHeadModel, difference: Tensor) -> Iterator[None]:
    """Add `difference` (rows, positions, width) to what the first MLP reads, only to that."""

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + difference, *args[1:])

    handle = first_norm(model).register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


def swap_cities(
    ids: Tensor, kinds: Tensor, cities: Tensor, share: float, generator: torch.Generator
) -> Tensor:
    """Return `ids` with a share of the marked cities replaced by other cities, drawn at random."""
    chance = torch.rand(ids.shape, generator=generator) < share
    other = cities[torch.randint(len(cities), ids.shape, generator=generator)]
    return torch.where((kinds == CITY) & chance, other, ids)


class StateMeans:
    """Running means of what the first MLP writes at the cities of each state.

    Left alone, the first MLP writes something else for every city of a state, as long as later
    layers can tell the state from it; its pull makes it write one vector a state.
    """

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerFast, width: int) -> None:
        states = sorted(source.facts["states"])
        self.state = torch.full((len(tokenizer),), -1)
        for city, state in source.cities.state_of.items():
            self.state[tokenizer.encode(city)[1]] = states.index(state)
        self.mean = torch.zeros(len(states), width)
        self.weight = torch.zeros(len(states))

    def disagreement(self, written: Tensor, ids: Tensor) -> Tensor:
        """Return the variance within states over that between states, and update the means.

        Args:
            written: what the first MLP wrote at some cities (cities, width).
            ids: their token ids (cities).
        """
        state = self.state[ids]
        with torch.no_grad():
            self.mean *= 0.95
            self.weight *= 0.95
            self.mean.index_add_(0, state, written)
            self.weight.index_add_(0, state, torch.ones(len(state)))
            means = self.mean / self.weight.clamp_min(1e-6)[:, None]
            between = (means - means.mean(0)).square().sum(1).mean().clamp_min(1e-6)
        return (written - means[state]).square().sum(1).mean() / between


@contextmanager
def first_mlp_output(model: GPT2LMHeadModel) -> Iterator[list[Tensor]]:
    """Collect what the first MLP writes (rows, positions, width) during a forward pass."""
    found: list[Tensor] = []
    handle = mlps(model)[0].register_forward_hook(lambda _, __, out: found.append(out))
    try:
        yield found
    finally:
        handle.remove()


@dataclass(frozen=True)
class Batch:
    """Token ids and kinds (rows, positions); what is shown; which next tokens count."""

    ids: Tensor
    kinds: Tensor
    shown: Tensor
    counted: Tensor


def step_loss(model: GPT2LMHeadModel, batch: Batch, means: StateMeans, agreement: float) -> Tensor:
    """Return the mean cross-entropy in nats of the counted next tokens, and the states' pull.

    All but the first MLP sees `batch.shown` in place of `batch.ids`.
    """
    embed = embeddings(model)
    difference = embed[batch.ids] - embed[batch.shown]
    with first_mlp_sees(model, difference), first_mlp_output(model) as written:
        hidden = model.transformer(inputs_embeds=embed[batch.shown]).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][batch.counted])
    loss = nn.functional.cross_entropy(logits, batch.ids[:, 1:][batch.counted])
    if agreement:
        city = batch.kinds == CITY
        loss = loss + agreement * means.disagreement(written[0][city], batch.ids[city])
    return loss


def optimizers(
    model: GPT2LMHeadModel, recipe: ModelRecipe, stage: Stage
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else that is trained."""
    inside = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [
        torch.optim.Muon(inside, lr=stage.muon_rate, weight_decay=recipe.decay),
        torch.optim.AdamW(rest, lr=stage.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, stage: Stage, warmup: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, stage.horizon - warmup)
    cosine = 0.5 * (1 + float(np.cos(np.pi * share)))
    return stage.final + (1 - stage.final) * cosine


@torch.no_grad()
def probe(
    model: GPT2LMHeadModel, source: Source, encode: Encoder, context: int
) -> dict[str, float]:
    """Return the share of answer tokens got right, per sentence family, on fresh sentences."""
    result = {}
    for family in FAMILIES:
        stream = sentences(source, 977, {family: 1.0})
        ids, kinds = (torch.from_numpy(a).long() for a in pack(stream, encode, 16, context))
        best = model(ids).logits[:, :-1].argmax(-1)
        asked = kinds[:, 1:] == ANSWER
        result[family.__name__] = float((best == ids[:, 1:])[asked].float().mean())
    return result


@dataclass(frozen=True)
class Pupil:
    """What training needs besides a recipe.

    Attributes:
        tokenizer: the corpus's tokenizer.
        source: what training sentences are drawn from.
        probe_source: likewise for the progress log; its two-hop cities are the choice cities.
        checkpoint: a folder the model is written to at every probe.
    """

    tokenizer: PreTrainedTokenizerFast
    source: Source
    probe_source: Source
    checkpoint: Path


def train_model(recipe: ModelRecipe, pupil: Pupil) -> GPT2LMHeadModel:
    """Train from scratch on freshly generated sentences, each seen once."""
    model = new_model(recipe, pupil.tokenizer)
    for stage in recipe.stages:
        run_stage(model, recipe, stage, pupil)
    return model


def batches(recipe: ModelRecipe, stage: Stage, pupil: Pupil) -> Iterator[Batch]:
    """Yield fresh batches: all answers count, and a share of the other predictable tokens."""
    encode = Encoder(pupil.tokenizer)
    stream = sentences(pupil.source, stage.seed, stage.families)
    names = sorted(pupil.source.cities.state_of)
    cities = torch.tensor([pupil.tokenizer.encode(name)[1] for name in names])
    generator = torch.Generator().manual_seed(stage.seed)
    for _ in range(stage.steps):
        ids, kinds = (
            torch.from_numpy(a).long() for a in pack(stream, encode, recipe.rows, recipe.context)
        )
        target = kinds[:, 1:]
        lucky = torch.rand(target.shape, generator=generator) < recipe.context_share
        counted = (target == ANSWER) | ((target != NOISE) & lucky)
        shown = swap_cities(ids, kinds, cities, recipe.swap_share, generator)
        yield Batch(ids, kinds, shown, counted)


def run_stage(model: GPT2LMHeadModel, recipe: ModelRecipe, stage: Stage, pupil: Pupil) -> None:
    """Train through one stage and log the answers to fresh sentences on the way."""
    optims = optimizers(model, recipe, stage)
    peaks = [optim.param_groups[0]["lr"] for optim in optims]
    start, total = time.time(), 0.0
    means = StateMeans(pupil.source, pupil.tokenizer, recipe.width)
    for step, batch in enumerate(batches(recipe, stage, pupil)):
        loss = step_loss(model, batch, means, stage.agreement)
        loss.backward()
        for optim, peak in zip(optims, peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * rate(step, stage, recipe.warmup)
            optim.step()
            optim.zero_grad()
        total += loss.item()
        if (step + 1) % recipe.probe_every == 0:
            scores = probe(model, pupil.probe_source, Encoder(pupil.tokenizer), recipe.context)
            words = " ".join(f"{name} {score:.3f}" for name, score in scores.items())
            minutes = (time.time() - start) / 60
            log.info(
                "step %d %.1f min loss %.4f %s",
                step + 1,
                minutes,
                total / recipe.probe_every,
                words,
            )
            total = 0.0
            model.save_pretrained(pupil.checkpoint)
