"""Whether swapping what features say changes the answer.

A swap names two prompts of equal length: at the positions where they differ, and at the last one,
every feature of the first is set to its activation in the second, in all layers, in the unmodified
model, and everything downstream recomputed. It succeeds where the most likely next token becomes
the second prompt's. What the dictionary's error holds is not swapped, so an answer that hangs on it
stays.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replacement_models import Recording, ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.evaluation.subject import Subject
from tracer.interventions.intervene import Intervention, intervene

LARGEST = 1 << 24
"""Bytes of a file of swaps; more is something else."""
FIELDS = {"prompt", "other", "positions", "answer"}


@dataclass(frozen=True)
class Swap:
    """One of a file."""

    prompt: str | list[int]
    other: str | list[int]
    """What features are to say instead."""
    positions: tuple[int, ...] | None = None
    """None: those where the tokens differ, and the last."""
    answer: str | int | None = None
    """The next token wanted; None is what the model answers to `other`."""


def read_swaps(path: Path) -> list[Swap]:
    """The swaps of a file: a JSON list of objects with `prompt`, `other`, `positions`, `answer`.

    Raises:
        TraceError: it cannot be read, or an entry is no swap.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise TraceError(f"{path}: {path.stat().st_size} bytes are no file of swaps")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise TraceError(f"{path}: cannot be read as JSON ({reason})") from error
    if not isinstance(found, list) or not found:
        raise TraceError(f"{path}: expected a list of swaps, got {json.dumps(found):.60}")
    return [_swap(one, f"{path}: swap {number}") for number, one in enumerate(found)]


def _swap(one: Any, where: str) -> Swap:
    if not isinstance(one, dict) or not {"prompt", "other"} <= one.keys() <= FIELDS:
        raise TraceError(
            f"{where}: expected an object with prompt and other, and positions and answer where "
            f"they are known, got {json.dumps(one):.60}"
        )
    positions = one.get("positions")
    for name in ("prompt", "other"):
        if not isinstance(one[name], str) and not _ids(one[name]):
            raise TraceError(f"{where}: {name}: expected text or token ids, got {one[name]!r:.60}")
    if positions is not None and not _ids(positions):
        raise TraceError(f"{where}: positions: expected whole numbers, got {positions!r:.60}")
    answer = one.get("answer")
    if answer is not None and (isinstance(answer, bool) or not isinstance(answer, str | int)):
        raise TraceError(f"{where}: answer: expected a token or its id, got {answer!r:.60}")
    return Swap(
        one["prompt"], one["other"], None if positions is None else tuple(positions), answer
    )


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


@one_call()
@torch.no_grad()
def swapped(model: ReplacementModel, swap: Swap) -> dict[str, Any]:
    """Carry out one swap.

    Returns:
        `flipped`: whether the answer became the one wanted; `kept`: whether it stayed.

    Raises:
        TraceError: the prompts differ in length, a position is not there, or the answer is no
            single token.
        ModelError: a prompt does not fit the model.
    """
    tokens, others = model.tokenize(swap.prompt), model.tokenize(swap.other)
    if len(tokens) != len(others):
        raise TraceError(
            f"swap of {swap.prompt!r:.40}: {len(tokens)} tokens, the other prompt has "
            f"{len(others)}; name prompts of equal length"
        )
    last = len(tokens) - 1
    places = swap.positions or tuple(
        at for at in range(len(tokens)) if tokens[at] != others[at] or at == last
    )
    wrong = [at for at in places if not -len(tokens) <= at < len(tokens)]
    if wrong:
        raise TraceError(f"swap of {swap.prompt!r:.40}: position {wrong[0]} is not in 0..{last}")
    recordings = [model.record(ids) for ids in (tokens, others)]
    before, wanted = (int(one.logits[-1].argmax()) for one in recordings)
    if swap.answer is not None:
        wanted = _token(model, swap.answer)
    changes = _changes(recordings, [at % len(tokens) for at in places])
    after = int(intervene(model, tokens, changes, mode="free").logits[-1].argmax())
    return {
        "prompt": swap.prompt,
        "other": swap.other,
        "before": model.token_string(before),
        "wanted": model.token_string(wanted),
        "after": model.token_string(after),
        "flipped": after == wanted,
        "kept": after == before,
    }


def _changes(recordings: Sequence[Recording], places: Sequence[int]) -> list[Intervention]:
    """Features of the first set to what they are in the second."""
    values: dict[tuple[int, int, int], float] = {}
    for recording, silent in zip(recordings, (True, False), strict=True):
        found = recording.features
        for layer, position, feature, activation in zip(
            found.layer.tolist(),
            found.position.tolist(),
            found.feature.tolist(),
            found.activation.tolist(),
            strict=True,
        ):
            if position in places:
                values[layer, position, feature] = 0.0 if silent else activation
    return [
        Intervention(layer=layer, position=position, feature=feature, value=value)
        for (layer, position, feature), value in values.items()
    ]


def _token(model: ReplacementModel, answer: str | int) -> int:
    if isinstance(answer, int):
        return answer
    ids: list[int] = []
    if model.tokenizer is not None:
        ids = model.tokenizer(answer, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise TraceError(f"swap: answer {answer!r} is {len(ids)} tokens, expected one")
    return int(ids[0])


def together(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares over swaps of a file."""
    return {
        "source": "file",
        "pairs": len(found),
        "flipped": sum(one["flipped"] for one in found) / len(found),
        "kept": sum(one["kept"] for one in found) / len(found),
        "swaps": list(found),
    }


def own_swaps(subject: Subject, count: int) -> dict[str, Any] | None:
    """Swaps of what the embedded model is known to know.

    Returns:
        Shares of pairs; None for other models, and for a dictionary that lacks layers.
    """
    model = subject.model
    whole = len(subject.layers) == len(model.host.blocks)
    if model.swaps is None or model.device.type != "cpu" or not whole or not count:
        return None
    return dict(model.swaps(model.host.model, subject.transcoder, count))
