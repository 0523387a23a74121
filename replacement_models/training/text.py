"""The rows of tokens that a run reads: packed once into its folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from replacement_models.errors import ModelError
from replacement_models.replacement import ReplacementModel
from replacement_models.text.documents import Document, documents
from replacement_models.text.packing import Packed, pack
from replacement_models.training.config import TrainConfig

FILE = "rows.arrow"
OWN_SEED = 107
"""Of the embedded model's sentences, beside the run's seed."""


@dataclass(frozen=True)
class Shape:
    """How rows are made."""

    context: int
    alone: bool
    max_tokens: int | None


def packed(
    config: TrainConfig,
    model: ReplacementModel,
    folder: Path,
    told: Callable[[int], None] = lambda rows: None,
) -> Packed:
    """The corpus as rows of tokens; read again only where it has not been.

    Args:
        config: names it.
        model: whose tokenizer and context.
        folder: of the run.
        told: called with the number of rows written so far.

    Raises:
        ModelError: it cannot be read, or holds no token.
    """
    data, path = config.data, folder / FILE
    if path.is_file():
        return Packed(path)
    context = row_length(config, model)
    if data.corpus is not None:
        found: Iterable[Document] = documents(data.corpus, data.field, data.lines)
        return pack(model, found, Shape(context, data.alone, data.max_tokens), path, told)
    from replacement_models.tiny.recipe.corpus import own_rows

    if model.corpus is None or model.tokenizer is None:
        raise ModelError("data.corpus: expected a file, a folder or hf:owner/name, got null")
    most = data.max_tokens or config.run.tokens
    own = own_rows(model.tokenizer, context, OWN_SEED + config.run.seed)
    return pack(model, own, Shape(context, True, most), path, told)


def row_length(config: TrainConfig, model: ReplacementModel) -> int:
    """Tokens a row: as asked for, or what the model reads where that is less and nobody asked."""
    wanted, most = config.data.context, model.host.context
    return wanted if most is None else min(wanted, most)
