"""Continue prompts with and without interventions, side by side, with the model's own cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.interventions.forward import FeatureEdits, Run, run, steering_hooks
from tracer.interventions.intervene import place
from tracer.interventions.values import OVERFLOWN, Intervention, Placed, Steering, positions_in


@dataclass(frozen=True, eq=False)
class Continuation:
    """New tokens of one prompt, without the one that ended it."""

    tokens: tuple[int, ...]
    text: str
    logits: Float[Tensor, "new vocabulary"]
    """What each new token was chosen from."""

    __repr__ = one_line


@dataclass(frozen=True, eq=False)
class Comparison:
    """One prompt continued twice, from the same random numbers."""

    prompt: str | Sequence[int]
    tokens: tuple[int, ...]
    plain: Continuation
    steered: Continuation

    __repr__ = one_line


COLDEST = 1e-6
"""Of temperatures above 0: logits divided by less are no numbers."""
SEEDS = 1 << 62


@dataclass(frozen=True)
class Sampling:
    """How next tokens are chosen."""

    max_new_tokens: int
    temperature: float
    """0 takes the likeliest."""
    seed: int
    """Prompt number i draws with seed + i, whatever else is in the batch."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise TraceError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more")
        if self.temperature != 0 and not COLDEST <= self.temperature < float("inf"):
            raise TraceError(
                f"temperature is {self.temperature}, expected 0, or a number from {COLDEST} up"
            )
        if not 0 <= self.seed < SEEDS:
            raise TraceError(f"seed is {self.seed}, expected a whole number from 0 to 2^62")

    def generators(self, rows: Sequence[int]) -> list[torch.Generator]:
        """One for each row of a batch; none where nothing is drawn."""
        if self.temperature == 0:
            return []
        return [torch.Generator().manual_seed(self.seed + row) for row in rows]

    def choose(
        self, logits: Float[Tensor, "rows vocabulary"], draws: Sequence[torch.Generator]
    ) -> list[int]:
        """The next token of every row."""
        if not bool(logits.isfinite().all()):
            raise TraceError(OVERFLOWN)
        if self.temperature == 0:
            return [int(row.argmax()) for row in logits]
        odds = (logits.double().cpu() / self.temperature).softmax(-1)
        return [
            int(torch.multinomial(row, 1, generator=draw))
            for row, draw in zip(odds, draws, strict=True)
        ]


@one_call()
@torch.no_grad()
def generate(
    model: ReplacementModel,
    prompts: str | Sequence[str | Sequence[int]],
    interventions: Sequence[Intervention | Steering] = (),
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Comparison]:
    """Continue every prompt plainly and, where there are any, under interventions in mode "free".

    Prompts of one length share a batch; nothing is padded, so every row is what it would be alone.
    A position counts from the start of its own prompt (negative: from the prompt's end), and an
    open slice, as in slice(-1, None), goes on through the new tokens.

    Args:
        model: the model.
        prompts: one text, or several prompts.
        interventions: the same for every prompt.
        max_new_tokens: at most so many, less where the model ends the text.
        temperature: 0 takes the likeliest token, above it samples.
        seed: of the sampling.

    Raises:
        TraceError: an option out of range, an intervention that names nothing, or too long a text.
        ModelError: a prompt does not fit the model.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    sampling = Sampling(max_new_tokens, temperature, seed)
    tokens = [model.tokenize(prompt) for prompt in listed]
    for ids in tokens:
        _check_length(model, len(ids) + max_new_tokens)
        place(model, interventions, len(ids), len(ids) + max_new_tokens)
    found: dict[int, Comparison] = {}
    for length in {len(ids) for ids in tokens}:
        rows = [index for index, ids in enumerate(tokens) if len(ids) == length]
        batch = torch.tensor([tokens[row] for row in rows], device=model.device)
        new = _continue(model, batch, interventions, sampling, rows)
        for at, row in enumerate(rows):
            pair = new[at], new[at - len(rows)]  # the same one twice where none is steered
            found[row] = Comparison(listed[row], tokens[row], *pair)
    return [found[row] for row in range(len(listed))]


def _check_length(model: ReplacementModel, length: int) -> None:
    context = model.host.context
    if context is not None and length > context:
        raise TraceError(
            f"prompt and max_new_tokens make {length} tokens, but the model reads at most "
            f"{context}; ask for fewer"
        )


def _continue(
    model: ReplacementModel,
    batch: Tensor,
    interventions: Sequence[Intervention | Steering],
    sampling: Sampling,
    rows: Sequence[int],
) -> list[Continuation]:
    """Continuations of a batch: the plain ones of all its rows, then the steered ones, if any."""
    count, prompt = batch.shape
    times = 2 if interventions else 1
    draws = sampling.generators([*rows] * times)
    given, first, cache = batch.repeat(times, 1), 0, None
    seen, chosen, ended = [], [], [False] * (times * count)
    stops = _stops(model)
    for _ in range(sampling.max_new_tokens):
        how = _step(model, interventions, (count, prompt), (first, first + given.shape[1]))
        outcome = run(model, given, how, cache)
        seen.append(outcome.logits[:, -1])
        chosen.append(sampling.choose(seen[-1], draws))
        ended = [done or token in stops for done, token in zip(ended, chosen[-1], strict=True)]
        if all(ended):
            break
        first, cache = first + given.shape[1], outcome.cache
        given = torch.tensor(chosen[-1], device=batch.device)[:, None]
    logits = torch.stack(seen, dim=1)
    columns = list(zip(*chosen, strict=True))
    return [_finished(model, columns[row], logits[row], stops) for row in range(times * count)]


def _step(
    model: ReplacementModel,
    interventions: Sequence[Intervention | Steering],
    size: tuple[int, int],
    span: tuple[int, int],
) -> Run:
    """The interventions that reach positions span[0]..span[1] - 1, on the second half of rows."""
    count, prompt = size
    steered = [one for one in interventions if isinstance(one, Steering)]
    placed: list[Placed] = [
        (one, positions_in(one.position, prompt, *span))
        for one in interventions
        if isinstance(one, Intervention)
    ]
    placed = [(one, positions) for one, positions in placed if positions]
    on = range(count, 2 * count)
    return Run(
        edit=FeatureEdits([[]] * count + [placed] * count),
        keep=False,
        added=steering_hooks(model, [(one, on) for one in steered], prompt, span[0]),
        cached=True,
    )


def _stops(model: ReplacementModel) -> set[int]:
    """Tokens that end a text."""
    named: Any = getattr(model.host.model.config, "eos_token_id", None)
    if named is None:
        return set()
    return set(named) if isinstance(named, list) else {named}


def _finished(
    model: ReplacementModel, tokens: Sequence[int], logits: Tensor, stops: set[int]
) -> Continuation:
    """What a row said before it ended."""
    end = next((at for at, token in enumerate(tokens) if token in stops), len(tokens))
    kept = tuple(tokens[:end])
    text = "".join(model.token_string(token) for token in kept)
    if model.tokenizer is not None:
        text = model.tokenizer.decode(list(kept))
    return Continuation(kept, text, logits[:end])
