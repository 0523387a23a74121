"""The text that dictionaries are measured on, as rows of tokens; baselines are fitted on a part.

Rows stand in a file that is mapped into memory and gone afterwards.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.replaced import Where, counted
from replacement_models.text.documents import FIELD, Corpus, Document, documents
from replacement_models.text.packing import FILL, Packed, pack
from tracer.errors import TraceError
from tracer.evaluation.settings import LOGITS, Settings

LONGEST_CONTEXT = 256
FITTED = 0.25
"""Share of the rows that baselines are fitted on."""
FEWEST = 16
"""Tokens that either part must hold."""


@dataclass(frozen=True)
class _Shape:
    context: int
    alone: bool
    max_tokens: int | None


@dataclass(frozen=True, eq=False)
class Text:
    """Rows of tokens in two parts."""

    model: ReplacementModel
    where: Where
    packed: Packed
    settings: Settings
    fitted: Int[np.ndarray, " rows"]
    """Numbers of the rows that baselines are fitted on."""
    measured: Int[np.ndarray, " rows"]
    """Those of all others."""

    @property
    def context(self) -> int:
        """Tokens a row."""
        return int(self.packed.tokens.shape[1])

    def batches(self, rows: Int[np.ndarray, " rows"]) -> Iterator[Int[Tensor, "rows positions"]]:
        """Rows without fill, those of one length together."""
        tokens, width = self.packed.tokens, self.model.host.vocabulary
        size = max(1, min(self.settings.batch, LOGITS // (4 * width * self.context)))
        lengths = (tokens[rows] != FILL).sum(1)
        order = np.argsort(lengths, kind="stable")
        for length, found in groupby(order.tolist(), key=lambda at: int(lengths[at])):
            some = rows[list(found)]
            if length > self.where.skip_positions:
                for begin in range(0, len(some), size):
                    part = tokens[some[begin : begin + size], :length].astype(np.int64)
                    yield torch.from_numpy(part).to(self.model.device)

    def counts(self, tokens: Int[Tensor, "rows positions"]) -> Bool[Tensor, "rows positions"]:
        """Which positions take part."""
        return counted(self.model, tokens, self.where)

    def count(self, rows: Int[np.ndarray, " rows"]) -> int:
        """Tokens among some rows that take part."""
        return sum(int(self.counts(ids).sum()) for ids in self.batches(rows))

    def some(self, tokens: int) -> Int[np.ndarray, " rows"]:
        """The first measured rows that hold so many tokens."""
        held = np.cumsum((self.packed.tokens[self.measured] != FILL).sum(1))
        return self.measured[: int(np.searchsorted(held, tokens)) + 1] if tokens else held[:0]

    def prompts(self) -> list[list[int]]:
        """The beginnings of some measured rows, less than all of a row."""
        found: list[list[int]] = []
        for row in self.packed.tokens[self.measured]:
            held = int((row != FILL).sum())
            length = min(self.settings.prompt_tokens, held - 1)
            if length > 1 and len(found) < self.settings.prompts:
                found.append([int(token) for token in row[:length]])
        return found


@contextmanager
def text_of(
    model: ReplacementModel,
    corpus: Corpus | None,
    settings: Settings,
    *,
    field: str = FIELD,
    lines: bool = False,
    alone: bool = False,
) -> Iterator[Text]:
    """Rows of a corpus, for the duration of a block.

    Args:
        model: whose tokenizer and context.
        corpus: as `text.documents.documents` takes it; None is the embedded model's own.
        settings: how much of it, in rows of which length.
        field: key or column that holds the text.
        lines: every line of plain text is a document.
        alone: every document begins a row.

    Raises:
        TraceError: there is too little text, or rows are longer than what the model reads.
        ModelError: the corpus cannot be read.
    """
    context = _context(model, settings)
    found: Iterable[Document]
    if corpus is None:
        found, alone = _own(model), True
    else:
        found = documents(corpus, field, lines)
    with TemporaryDirectory(prefix="tracer-evaluate-") as folder:
        shape = _Shape(context, alone, settings.max_tokens)
        packed = pack(model, found, shape, Path(folder) / "rows.arrow")
        yield _parted(model, packed, settings)


def _parted(model: ReplacementModel, packed: Packed, settings: Settings) -> Text:
    """Every so manieth row for baselines."""
    every = np.arange(len(packed.tokens))
    fit = every % round(1 / FITTED) == round(1 / FITTED) - 1
    where = Where(skip_positions=settings.skip_positions)
    text = Text(model, where, packed, settings, every[fit], every[~fit])
    if min(text.count(text.fitted), text.count(text.measured)) < FEWEST:
        raise TraceError(
            f"corpus: {len(every)} rows of {text.context} tokens are too few to fit baselines on "
            "some and to measure on others; give more text, or a smaller context"
        )
    return text


def _context(model: ReplacementModel, settings: Settings) -> int:
    most = model.host.context
    wanted = settings.context
    if wanted is None:
        return LONGEST_CONTEXT if most is None else min(LONGEST_CONTEXT, most)
    if most is not None and wanted > most:
        raise TraceError(f"context is {wanted}, but the model reads at most {most} tokens")
    return wanted


def _own(model: ReplacementModel) -> Iterable[Document]:
    """Text of the kind that the model knows, if any is known."""
    if model.corpus is None:
        raise TraceError("corpus is missing: no text of this model is known; name some")
    return model.corpus()
