"""`head_scores`: what kind of head each is, from how it attends and what it writes.

Attention on random tokens repeated once: to the token before (previous), to the token that
followed the last time (induction), to the same token the last time (duplicate). Writing, by what a
head's output map makes of a token: the next in a series (successor), the token itself (name mover).
The pattern of a linear layer may be negative, and its rows add up to anything.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads", for the first three; Wang et
al. 2023, "Interpretability in the Wild", for copying; Gould et al. 2023, "Successor Heads".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.folding import written
from replacement_models.process import one_call
from tracer.errors import TraceError

SCORES = ("previous", "induction", "duplicate", "successor", "name_mover")
NAMES = (
    *("Mary", "John", "Tom", "James", "Anna", "Sarah", "Michael", "David", "Paul", "Mark", "Lisa"),
    *("Emma", "Alice", "Bob", "Jack", "Kate", "Peter", "George", "Laura", "Susan", "Robert"),
    *("William", "Linda", "Karen", "Daniel", "Kevin", "Brian", "Steven", "Nancy", "Anne", "Max"),
    *("Lucy", "Sam", "Ben", "Jane", "Luke", "Adam", "Eric", "Helen", "Julia", "Martin", "Simon"),
)
SERIES = (
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    (
        *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
        *("October", "November", "December"),
    ),
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"),
    tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    tuple("abcdefghijklmnopqrstuvwxyz"),
)
FEWEST = 5
"""Tokens of a kind below which a score says nothing and is null."""
COPIED = 5
"""A token is copied where it is among so many that its head promotes most."""


@dataclass(frozen=True)
class Repeats:
    """Random tokens, and the same again."""

    length: int
    """Tokens before they repeat."""
    count: int
    """Sequences."""
    seed: int


@one_call()
@torch.no_grad()
def head_scores(
    model: ReplacementModel, *, length: int = 16, count: int = 8, seed: int = 0
) -> pa.Table:
    """Score every head of a model; its dictionary takes no part.

    Args:
        model: the model.
        length: random tokens of a sequence before they repeat.
        count: sequences.
        seed: of the random tokens.

    Returns:
        One row a head: layer, head; previous, induction, duplicate (mean attention, 0 to 1, on
        random repeats); successor and name_mover (share of tokens whose successor, or which
        themselves, the head writes most; null where the vocabulary has too few as single tokens,
        and of heads that write nothing to the stream).

    Raises:
        TraceError: a number is too small, or the sequences do not fit the model's context.
    """
    _check(model, length, count)
    repeats = Repeats(length, count, seed)
    attended = _attended(model, repeats)
    written = _written(model)
    heads = [
        (layer, head)
        for layer, block in enumerate(model.host.blocks)
        for head in range(len(block.output))
    ]
    columns = {
        "layer": pa.array([layer for layer, _ in heads], pa.int32()),
        "head": pa.array([head for _, head in heads], pa.int32()),
    }
    for name in SCORES:
        value = (attended | written).get(name)
        found = (
            [None] * len(heads)
            if value is None
            else [score for layer in value for score in layer.tolist()]
        )
        columns[name] = pa.array(found, pa.float64(), from_pandas=True)  # NaN is null
    return pa.table(columns)


def _check(model: ReplacementModel, length: int, count: int) -> None:
    if length < 2 or count < 1:
        raise TraceError(
            f"length is {length} and count {count}, expected at least 2 tokens and 1 sequence"
        )
    context = model.host.context
    if context is not None and 2 * length + 1 > context:
        raise TraceError(
            f"length is {length}, so sequences have {2 * length + 1} tokens, but the model reads "
            f"at most {context}: give at most {(context - 1) // 2}"
        )


def _attended(model: ReplacementModel, repeats: Repeats) -> dict[str, list[Tensor]]:
    """Mean attention a layer, (heads,), at each of three offsets."""
    length = repeats.length
    generator = torch.Generator().manual_seed(repeats.seed)
    start = _start(model)
    ordinary = torch.tensor(_ordinary(model))
    sums: dict[str, list[Tensor]] = {}
    for _ in range(repeats.count):
        chosen = ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist()
        recording = model.record([*start, *chosen, *chosen], last_logits=True)
        for layer, frozen in enumerate(recording.layers):
            found = _offsets(frozen.attention_pattern().double(), len(start), length)
            for name, value in found.items():
                rows = sums.setdefault(name, [])
                if layer == len(rows):
                    rows.append(torch.zeros_like(value))
                rows[layer] += value / repeats.count
    return sums


def _offsets(
    pattern: Float[Tensor, "heads queries keys"], start: int, length: int
) -> dict[str, Float[Tensor, " heads"]]:
    """Mean attention to the token before; of the second half to what followed, and to the same."""
    second = torch.arange(start + length, start + 2 * length, device=pattern.device)
    every = torch.arange(start + 1, start + 2 * length, device=pattern.device)
    places = {
        "previous": (every, every - 1),
        "induction": (second, second - length + 1),
        "duplicate": (second, second - length),
    }
    return {name: pattern[:, query, key].mean(1) for name, (query, key) in places.items()}


def _start(model: ReplacementModel) -> list[int]:
    """The model's BOS, where it has one."""
    token = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return [] if token is None else [int(token)]


def _ordinary(model: ReplacementModel) -> list[int]:
    """Vocabulary ids that are no special tokens."""
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    entries = model.host.vocabulary
    known = entries if model.tokenizer is None else min(entries, len(model.tokenizer))
    return [token for token in range(known) if token not in special]


def _written(model: ReplacementModel) -> dict[str, list[Tensor]]:
    """Scores a layer, (heads,), of what heads write; those with too few tokens are missing."""
    if model.tokenizer is None:
        return {}
    names = [token for name in NAMES if (token := _single(model, name)) is not None]
    series = [[_single(model, word) for word in words] for words in SERIES]
    steps = [
        (before, after, [token for token in tokens if token is not None])
        for tokens in series
        for before, after in pairwise(tokens)
        if before is not None and after is not None
    ]
    found: dict[str, list[Tensor]] = {}
    blocks = model.host.blocks
    if len(names) >= FEWEST:
        found["name_mover"] = [
            _nothing(out) if block.aside else _copied(model, out, names)
            for block, out in zip(blocks, _outputs(model, names), strict=True)
        ]
    if len(steps) >= FEWEST:
        outputs = _outputs(model, [before for before, _, _ in steps])
        found["successor"] = [
            _nothing(out) if block.aside else _succeeded(model, out, steps)
            for block, out in zip(blocks, outputs, strict=True)
        ]
    return found


def _nothing(out: Float[Tensor, "tokens heads d_model"]) -> Float[Tensor, " heads"]:
    """Scores of heads that write nothing to the stream."""
    return out.new_full(out.shape[1:2], torch.nan, dtype=torch.float64)


def _single(model: ReplacementModel, word: str) -> int | None:
    """The id of a word that is one token, with a space in front or without."""
    unknown = model.tokenizer.unk_token_id
    for text in (f" {word}", word):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) == 1 and ids[0] != unknown:
            return int(ids[0])
    return None


def _copied(
    model: ReplacementModel, out: Float[Tensor, "tokens heads d_model"], tokens: Sequence[int]
) -> Float[Tensor, " heads"]:
    own = torch.tensor(tokens, device=out.device)[:, None]
    tops = [(head @ model.host.unembedding.T).topk(COPIED).indices for head in out.unbind(1)]
    return torch.stack([(top == own).any(-1).double().mean() for top in tops])


def _succeeded(
    model: ReplacementModel,
    out: Float[Tensor, "tokens heads d_model"],
    steps: Sequence[tuple[int, int, Sequence[int]]],
) -> Float[Tensor, " heads"]:
    right = [
        (out[row] @ model.host.unembedding[list(among)].T).argmax(-1) == list(among).index(after)
        for row, (_, after, among) in enumerate(steps)
    ]
    return torch.stack(right).double().mean(0)


def _outputs(
    model: ReplacementModel, tokens: Sequence[int]
) -> list[Float[Tensor, "tokens heads d_model"]]:
    """Of each layer: what every head makes of tokens, as the unembedding reads it.

    A head of the bottom layer reads the embedding; later ones the stream above layer 0, which has
    what the first MLP makes of it. Tokens stand alone, after a BOS where the model has one; factors
    around a pattern are those of that prompt.
    """
    start, layers = _start(model), len(model.host.blocks)
    recordings = [model.record([*start, token], last_logits=True) for token in tokens]
    return [_layer_outputs(model, layer, recordings) for layer in range(layers)]


def _layer_outputs(
    model: ReplacementModel, layer: int, recordings: Sequence[Recording]
) -> Float[Tensor, "tokens heads d_model"]:
    block, final = model.host.blocks[layer], model.host.final_norm
    group = len(block.output) // len(block.value)
    norm, found = block.attention_norm, []
    for one in recordings:
        stream, factors = one.residuals[min(layer, 1)], one.layers[layer].factors
        if block.reads_tokens:
            stream = torch.cat([stream, one.token_vectors.to(stream.device)], dim=-1)
        read = stream if norm is None else norm.frozen(stream, norm.scale(stream))
        values = block.mixable(read, factors).repeat_interleave(group, -2)
        found.append(factors.of_outputs(values)[-1])
    by_head = torch.stack(found)
    out = written(torch.einsum("thi,hid->thd", by_head, block.output), block.attention_post_norm)
    return final.centre(out) * final.weight
