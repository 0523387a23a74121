"""Text to fit lenses on: cut into texts, packed into rows of one length, some of it held out."""

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from replacement_models import ReplacementModel
from tracer.errors import TraceError

WINDOW = 64
"""Tokens a row, the first its BOS; less where the model reads less."""
Text = str | Sequence[int]


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of token ids; every row begins anew."""

    fitted: Int[Tensor, "rows positions"]
    held_out: Int[Tensor, "rows positions"]
    skip: int
    """Positions at a row's start that stand for no text: its BOS."""


def texts_of(path: Path) -> list[str]:
    """The texts of a file: parted by blank lines, or where it has none, its lines.

    Raises:
        TraceError: it holds none, or is no text.
    """
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read as text ({error})") from error
    parts, lines = (
        [part.strip() for part in whole.split(end) if part.strip()] for end in ("\n\n", "\n")
    )
    if not lines:
        raise TraceError(f"{path}: holds no text")
    return parts if len(parts) > 1 else lines


def packed(
    model: ReplacementModel,
    texts: Sequence[Text] | None,
    tokens: int,
    held_out: float,
    seed: int,
) -> Packed:
    """Tokenize texts and cut them into rows, the texts held out apart from the others.

    Args:
        model: its tokenizer, and its own corpus.
        texts: text or ids; None is the model's corpus.
        tokens: use at most so many, drawn text by text.
        held_out: share of the rows' tokens that is held out.
        seed: of the order of texts.

    Returns:
        Rows of at most `WINDOW` tokens.

    Raises:
        TraceError: there is no text, or too little to hold anything out.
    """
    if texts is None and model.corpus is None:
        raise TraceError("corpus is missing: no text of this model is known; name some")
    drawn = list(texts if texts is not None else model.corpus() if model.corpus else ())
    random.Random(seed).shuffle(drawn)
    first = _start(model)
    length = min(WINDOW, model.host.context or WINDOW) - len(first)
    pieces: list[list[int]] = []
    ends = [0]
    for text in drawn:
        if ends[-1] < tokens:
            pieces.append(_ids(model, text))
            ends.append(ends[-1] + len(pieces[-1]))
    split = bisect_left(ends, held_out * ends[-1])
    rows = [_rows(part, first, length) for part in (pieces[split:], pieces[:split])]
    if not all(rows):
        raise TraceError(
            f"corpus: {ends[-1]} tokens in {len(pieces)} texts make no row of {length} to fit on "
            "and one to hold out; give more text, in more parts"
        )
    fitted, kept_out = (torch.tensor(part, device=model.device) for part in rows)
    return Packed(fitted, kept_out, len(first))


def _start(model: ReplacementModel) -> list[int]:
    """What stands before a text: its BOS, where the tokenizer knows one."""
    bos = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return [] if bos is None else [int(bos)]


def _ids(model: ReplacementModel, text: Text) -> list[int]:
    if not isinstance(text, str):
        return [int(token) for token in text]
    if model.tokenizer is None:
        raise TraceError("corpus is text, but this model has no tokenizer; give token ids")
    ids: list[int] = list(model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    return ids


def _rows(pieces: Sequence[Sequence[int]], first: list[int], length: int) -> list[list[int]]:
    """All pieces one after another, cut into rows; what does not fill the last row is left."""
    flat = [token for piece in pieces for token in piece]
    return [
        first + flat[begin : begin + length] for begin in range(0, len(flat) - length + 1, length)
    ]
