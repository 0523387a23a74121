"""The verb: measure dictionaries on text, by graphs and by interventions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from replacement_models.text.documents import FIELD, Corpus
from tracer.errors import TraceError
from tracer.evaluation.dictionary_figures import Told, affine_alone, fits, measure
from tracer.evaluation.evaluation import Evaluation, about
from tracer.evaluation.graph_scores import graph_scores
from tracer.evaluation.graph_scores import together as scores_together
from tracer.evaluation.labelled import label_figures
from tracer.evaluation.settings import Settings
from tracer.evaluation.subject import Given, Subject, subject_of
from tracer.evaluation.swaps import Swap, own_swaps, read_swaps, swapped
from tracer.evaluation.swaps import together as swaps_together
from tracer.evaluation.text import Text, text_of
from tracer.evaluation.widths import compared

Prompt = str | Sequence[int]
USUAL = Settings()


@one_call()
@torch.no_grad()
def evaluate(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    corpus: Corpus | None = None,
    *,
    transcoders: Given | Sequence[Given] | None = None,
    prompts: Sequence[Prompt] | None = None,
    swaps: str | Path | Sequence[Swap] | None = None,
    earlier: Sequence[str | Path] = (),
    field: str = FIELD,
    lines: bool = False,
    alone: bool = False,
    max_tokens: int = USUAL.max_tokens,
    context: int | None = USUAL.context,
    batch: int = USUAL.batch,
    skip_positions: int = USUAL.skip_positions,
    alone_tokens: int = USUAL.alone_tokens,
    prompt_count: int = USUAL.prompts,
    prompt_tokens: int = USUAL.prompt_tokens,
    max_features: int | None = USUAL.max_features,
    capped: int = USUAL.capped,
    swap_count: int = USUAL.swaps,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure what dictionaries are worth, each figure beside what has to be beaten.

    Args:
        model: the model; its own dictionary is measured where no other is named.
        corpus: a file or folder of text, JSONL or Parquet, `hf:owner/name`, or documents; None is
            the embedded model's own.
        transcoders: dictionaries of this model to measure instead, or their folders or hub ids;
            of several of one kind, splitting and absorption across their widths are measured too.
        prompts: text or token ids that graphs are scored on; None takes beginnings of rows.
        swaps: swaps of features to try, or a file of them; None tries the embedded model's own.
        earlier: folders of evaluations that stand in the plot too.
        field: key or column of the corpus that holds the text.
        lines: every line of plain text is a document.
        alone: every document begins a row.
        max_tokens: read at most so many tokens of the corpus, a quarter of them for baselines.
        context: tokens a row; None is 256, or what the model reads where that is less.
        batch: rows a forward pass at most.
        skip_positions: first positions of a row that take no part, beside special tokens.
        alone_tokens: tokens on which MLPs are replaced one at a time; 0 leaves this out.
        prompt_count: prompts taken from the corpus where none are given; 0 is none.
        prompt_tokens: tokens of each of those.
        max_features: features a graph is traced with at most; None is all.
        capped: the same of a second graph of each prompt.
        swap_count: swaps of the embedded model's own; 0 leaves them out.
        progress: called with words for what is done, and how much of how much.

    Returns:
        Figures by dictionary; errors and scores are shares, divergences nats a token. `.save`
        writes them as JSON and as a page.

    Raises:
        TraceError: a setting is out of range, there is too little text, or a file of swaps or an
            earlier evaluation cannot be read.
        ModelError: the corpus or a dictionary cannot be read or does not fit.

    Source: training-evaluation figures as in Ameisen et al. 2025 (replacement, completeness),
    Bricken et al. 2023 (loss recovered, splitting), Chanin et al. 2024 (absorption).
    """
    told = progress or (lambda words, done, total: None)
    if isinstance(prompts, str):
        raise TraceError(f"prompts is {prompts!r:.40}, expected a list of prompts")
    settings = Settings(
        max_tokens=max_tokens,
        context=context,
        batch=batch,
        skip_positions=skip_positions,
        alone_tokens=alone_tokens,
        prompts=prompt_count,
        prompt_tokens=prompt_tokens,
        max_features=max_features,
        capped=capped,
        swaps=swap_count,
    )
    before = [Evaluation.load(path) for path in earlier]
    wanted = read_swaps(Path(swaps)) if isinstance(swaps, str | Path) else swaps
    told("Loading dictionaries", 0, 0)
    subjects = [subject_of(model, one) for one in _several(transcoders)]
    with text_of(model, corpus, settings, field=field, lines=lines, alone=alone) as text:
        asked = text.prompts() if prompts is None else prompts
        made = [_figures(one, text, asked, wanted, told) for one in subjects]
        pairs = [compared(*pair, text, told) for pair in _pairs(subjects)]
        figures = about(model, text) | {"dictionaries": made, "widths": pairs}
    return Evaluation(figures).beside(before)


def _several(given: Given | Sequence[Given] | None) -> Sequence[Given | None]:
    if given is None:
        return [None]
    if isinstance(given, list | tuple):
        if not given:
            raise TraceError("transcoders is empty; name at least one dictionary")
        return given
    return [given]  # type: ignore[list-item]


def _pairs(subjects: Sequence[Subject]) -> list[tuple[Subject, Subject]]:
    """Neighbours in width among those of one kind at the same places."""
    found = []
    ordered = sorted(subjects, key=lambda one: sum(one.widths))
    for at, narrow in enumerate(ordered):
        for wide in ordered[at + 1 :]:
            if comparable(narrow, wide):
                found.append((narrow, wide))
                break
    return found


def comparable(narrow: Subject, wide: Subject) -> bool:
    """Whether the one is wider than the other, of the same kind at the same layers and places."""
    return (
        narrow.transcoder.kind == wide.transcoder.kind
        and narrow.layers == wide.layers
        and narrow.places == wide.places
        and all(
            narrow.transcoder.read_at(layer) == wide.transcoder.read_at(layer)
            for layer in narrow.layers
        )
        and sum(narrow.widths) < sum(wide.widths)
    )


def _figures(
    subject: Subject,
    text: Text,
    prompts: Sequence[Prompt],
    swaps: Sequence[Swap] | None,
    told: Told,
) -> dict[str, Any]:
    """Everything about one dictionary."""

    def said(words: str, done: int, total: int) -> None:
        told(f"{subject.name}: {words}", done, total)

    transcoder, settings = subject.transcoder, text.settings
    fitted = fits(subject, text, said)
    found: dict[str, Any] = {
        "name": subject.name,
        "hash": subject.content,
        "kind": transcoder.kind,
        "features": sum(subject.widths),
        **measure(subject, text, fitted, said),
        **dict.fromkeys(("graphs", "swaps", "labels")),
    }
    if subject.is_autoencoder:
        return found
    rows = []
    affine = affine_alone(subject, fitted).model
    for number, prompt in enumerate(prompts):
        said("Tracing", number, len(prompts))
        rows.append(graph_scores(subject, affine, prompt, settings))
    found["graphs"] = scores_together(rows) if rows else None
    found["swaps"] = _swapped(subject, swaps, settings.swaps, said)
    found["labels"] = label_figures(subject)
    return found


def _swapped(
    subject: Subject, swaps: Sequence[Swap] | None, count: int, said: Told
) -> dict[str, Any] | None:
    if swaps is None:
        said("Swapping", 0, 0)
        return own_swaps(subject, count)
    done = []
    for number, swap in enumerate(swaps):
        said("Swapping", number, len(swaps))
        done.append(swapped(subject.model, swap))
    return swaps_together(done) if done else None
