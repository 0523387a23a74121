"""Data made from known features: random text, firings planted by predicates, with noise."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from transformers import GPT2Config, GPT2LMHeadModel

from replacement_models import (
    DenseDecoder,
    JumpReLU,
    PerLayerTranscoder,
    ReadPoint,
    ReplacementModel,
    TranscoderLayer,
)
from tracer.features.labels.choosing import Side, Sides
from tracer.features.labels.names import Names
from tracer.features.labels.observed import Observed
from tracer.features.labels.predicates import (
    Alternative,
    Clause,
    Condition,
    Kind,
    Predicate,
    Text,
)

WORDS = 60
FRUIT = Alternative("a fruit", (3, 4, 5, 6, 7, 8, 9), is_class=True)


def word(token: int) -> Alternative:
    return Alternative(f"w{token}", (token,))


def names() -> Names:
    """A vocabulary of WORDS words, some of which have the class FRUIT."""
    return Names((*(word(token) for token in range(WORDS)), FRUIT), WORDS, WORDS)


def on(*tokens: int) -> Condition:
    return condition("on", *tokens)


def condition(kind: Kind, *tokens: int) -> Condition:
    return Condition(kind, tuple(word(token) for token in tokens))


def predicate(*clauses: tuple[Condition, ...]) -> Predicate:
    return Predicate(tuple(Clause(parts) for parts in clauses))


def text(seed: int, rows: int = 600, width: int = 16) -> Text:
    """Frequent words and rare ones; what is said next depends on the word and the one before."""
    drawn = np.random.default_rng(seed)
    share = 1 / (4 + np.arange(WORDS))
    tokens = drawn.choice(WORDS, (rows, width), p=share / share.sum()).astype(np.int32)
    before = np.roll(tokens, 1, axis=1)
    return Text(tokens, (tokens + before) % WORDS, np.ones(tokens.shape, dtype=bool))


@dataclass(frozen=True)
class Noise:
    """Shares: of the firings that are missed, of the other tokens that fire all the same."""

    missed: float = 0.05
    wrong: float = 0.0005


def observed(planted: list[Predicate], seed: int, noise: Noise) -> Observed:
    """A text at which features fire as planted."""
    drawn, known = np.random.default_rng(seed + 1000), text(seed)
    fires = np.stack([one.holds(known)[known.counts] for one in planted])
    chance = drawn.random(fires.shape)
    found = np.where(fires, chance > noise.missed, chance < noise.wrong)
    return Observed(known, {0: sparse.csr_array(found.astype(np.float32))}, str(seed))


def sides(planted: list[Predicate], noise: Noise | None = None) -> Sides:
    """Three texts at which features fire as planted."""
    noise, vocabulary = noise or Noise(), names()
    return Sides(*(Side(observed(planted, seed, noise), vocabulary) for seed in (1, 2, 3)))


def reading_model(planted: list[tuple[int, ...]], promoted: list[int]) -> ReplacementModel:
    """A model without attention whose features fire on given tokens, and on nothing else.

    Token vectors are orthogonal, encoder rows are those of the tokens, and what a feature writes is
    the unembedding row of the token that it promotes.
    """
    size = 32
    config = GPT2Config(
        vocab_size=size, n_positions=16, n_embd=size, n_layer=1, n_head=1, bos_token_id=0,
        eos_token_id=0, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.zeros_like(weight) if weight.ndim > 1 or "bias" in name else weight)
        model.transformer.wte.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(torch.eye(size).roll(1, 0))
    rows = torch.zeros(len(planted), size, dtype=torch.float64)
    written = torch.zeros(len(planted), 1, size, dtype=torch.float64)
    for feature, (tokens, said) in enumerate(zip(planted, promoted, strict=True)):
        rows[feature, list(tokens)] = 1.0
        written[feature, 0] = model.lm_head.weight[said].detach()
    bound = torch.full((len(planted),), 1.0, dtype=torch.float64)
    layer = TranscoderLayer(
        W_enc=rows,
        b_enc=torch.zeros(len(planted), dtype=torch.float64),
        decoder=DenseDecoder(written),
        b_dec=torch.zeros(size, dtype=torch.float64),
        activation=JumpReLU(bound),
    )
    return ReplacementModel.from_huggingface(
        model, None, PerLayerTranscoder([layer], read=ReadPoint.NORMED), name="planted"
    )
