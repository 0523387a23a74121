"""Fit a lens on text, and say how far it is from the model's answers on text held out."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.lenses.affine import KINDS, AffineLens
from tracer.lenses.corpus import Packed, Text, packed
from tracer.lenses.jacobian import jacobian_maps
from tracer.lenses.readings import divergences, unembedded
from tracer.lenses.streams import streams
from tracer.lenses.tuned import Progress, tuned_maps

AT_ONCE = 8
"""Rows of text held out that are read together."""


@one_call()
@torch.no_grad()
def fit_lens(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    corpus: Sequence[Text] | None = None,
    kind: str = "tuned",
    *,
    steps: int | None = None,
    tokens: int = 100_000,
    held_out: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> AffineLens:
    """Make a lens of one kind for a model.

    Args:
        model: the model.
        corpus: texts, or token ids taken as they stand, packed into rows of up to 64 tokens; None
            is the corpus that the model is known to be trained on.
        kind: "tuned" or "jacobian".
        steps: batches of rows to learn from; None: 250 for "tuned", 4 for "jacobian", each of which
            takes as many backward passes as the stream is wide.
        tokens: read at most so many of the corpus, texts drawn at random.
        held_out: share of these in texts kept apart, on which the lens is measured.
        seed: of every draw; the same call on the same machine gives the same lens.
        progress: called with how many steps are done, and of how many.

    Returns:
        The lens; `about["held_out"]` has its mean KL to the model's answer in nats by layer, `kl`,
        that of the logit lens, `kl_logit`, and the tokens it is a mean of.

    Raises:
        TraceError: an argument is out of range, or there is too little text.
        ModelError: a token is not the model's.
    """
    if kind not in KINDS:
        raise TraceError(f"kind is {kind!r}, expected one of {', '.join(KINDS)} to fit")
    steps = {"tuned": 250, "jacobian": 4}[kind] if steps is None else steps
    for name, count in (("steps", steps), ("tokens", tokens)):
        if count < 1:
            raise TraceError(f"{name} is {count}, expected 1 or more")
    if not 0 < held_out < 1:
        raise TraceError(f"held_out is {held_out}, expected a share above 0 and below 1")
    text = packed(model, corpus, tokens, held_out, seed)
    make = {"tuned": tuned_maps, "jacobian": jacobian_maps}[kind]
    maps, offsets = make(model, text, steps, seed, progress)
    about: dict[str, Any] = {
        "model": model.name,
        "steps": steps,
        "seed": seed,
        "tokens": math.prod(text.fitted.shape),
    }
    lens = AffineLens(kind, maps.cpu(), offsets.cpu(), about)
    return replace(lens, about=about | {"held_out": measured(model, lens, text)})


def measured(model: ReplacementModel, lens: AffineLens, text: Packed) -> dict[str, Any]:
    """How far a lens and the logit lens are from the model's answers on the rows held out.

    Args:
        model: the model.
        lens: fitted on other text.
        text: its rows held out.

    Returns:
        Mean KL in nats by layer, L + 1 numbers each, and the count of tokens.
    """
    sums = torch.zeros(2, len(lens.maps) + 1, dtype=torch.float64)
    for rows in text.held_out.split(AT_ONCE):
        sums += _summed(model, lens, rows, text.skip)
    count = text.held_out[:, text.skip :].numel()
    ours, logit = (sums / count).tolist()
    return {"kl": ours, "kl_logit": logit, "tokens": count}


def _summed(
    model: ReplacementModel, lens: AffineLens, rows: Int[Tensor, "rows positions"], skip: int
) -> Float[Tensor, "2 layers_and_one"]:
    """KL of lens and logit lens, summed over tokens."""
    seen = streams(model, rows)
    answer = seen.logits[:, skip:].flatten(0, 1)
    found = []
    for layer, entering in enumerate(seen.entering):
        stream = entering[:, skip:].flatten(0, 1)
        found.append(
            torch.stack(
                [
                    divergences(answer, unembedded(model, one)).sum().cpu()
                    for one in (lens.read(layer, stream), stream)
                ]
            )
        )
    return torch.stack(found, dim=1)
