"""Prompts as they are given: what is to be traced, what it is to explain, what the caller adds.

What is wrong with one prompt is a reason that stands in its row of the dataset; what is wrong with
all of them (no prompt at all, a column with a name of ours) is an error before any work.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from graphs.collections.columns import PROMPT_COLUMNS
from tracer.attribution.targets import Difference, Target, target_name
from tracer.errors import TraceError

GIVEN = ("prompt", "tokens", "targets", "target", "minus")
"""Keys, or columns, that say what to trace; all others are the caller's own."""
LONGEST = 1 << 22
"""Characters of a prompt, or of a line, at most."""
MOST_COLUMNS = 256
"""Columns of the caller's own at most."""
INT = 1 << 63


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt."""

    given: str | tuple[int, ...] | None
    """Text, or token ids; None where there is nothing to trace."""
    targets: tuple[Target, ...] | None = None
    """What to explain; None: what is asked of all prompts."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Values of the caller's own columns."""
    wrong: str | None = None
    """Why it cannot be traced, in one line."""

    @property
    def text(self) -> str | None:
        """What stands in its row: the text, if it is one that a file can hold."""
        return self.given if isinstance(self.given, str) and _is_text(self.given) else None


def refused(reason: object) -> Prompt:
    """What stands in the place of a prompt that cannot be read."""
    return Prompt(None, wrong=one_line(reason))


def one_line(reason: object) -> str:
    """At most 300 characters that a file can hold, without ends of lines."""
    return " ".join(str(reason).split())[:300].encode(errors="replace").decode()


def prompts_of(given: Iterable[Any]) -> list[Prompt]:
    """Prompts from values of a program.

    Args:
        given: texts, lists of token ids, or mappings with the keys `prompt` (or `tokens`),
            `targets` and the caller's own columns.

    Returns:
        One prompt a value, in order.

    Raises:
        TraceError: there is none, or columns have names that cannot be.
    """
    return checked([prompt_of(value) for value in given], "prompts")


def checked(prompts: list[Prompt], where: str) -> list[Prompt]:
    """The prompts, if a dataset can be made of them.

    Raises:
        TraceError: there is none, or columns have names that cannot be.
    """
    if not prompts:
        raise TraceError(f"{where}: holds no prompt; give at least one")
    names = list(dict.fromkeys(name for prompt in prompts for name in prompt.own))
    taken = [name for name in names if name in PROMPT_COLUMNS]
    if taken:
        raise TraceError(
            f"{where}: column {taken[0]!r} is one of the dataset's own; give it another name"
        )
    if len(names) > MOST_COLUMNS:
        raise TraceError(f"{where}: has {len(names)} columns, expected at most {MOST_COLUMNS}")
    if wrong := [name for name in names if not (name.strip() and _is_text(name))]:
        raise TraceError(f"{where}: a column is called {wrong[0]!r:.80}, expected some text")
    return _uniform(prompts, names)


def prompt_of(value: Any) -> Prompt:
    """A prompt from a text, a list of token ids, or a mapping; a prompt as it stands."""
    if isinstance(value, Prompt):
        return value
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, str):
        return _checked_text(Prompt(value))
    return _from_ids(value) if _is_ids(value) else refused(_unlike(value))


def _unlike(value: Any) -> str:
    return f"is {value!r:.60}, expected text, a list of token ids, or an object with a prompt"


def _is_ids(value: Any) -> bool:
    sequence = isinstance(value, Sequence) or hasattr(value, "tolist")
    return sequence and not isinstance(value, str | bytes)


def _from_ids(value: Any) -> Prompt:
    ids = value.tolist() if hasattr(value, "tolist") else list(value)
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        return refused(f"tokens are {ids!r:.60}, expected a list of whole numbers")
    if any(abs(one) >= INT for one in ids):
        return refused("tokens: a number is too large for any vocabulary")
    return Prompt(tuple(ids))


def _from_mapping(value: Mapping[Any, Any]) -> Prompt:
    own = {str(name): _plain(held) for name, held in value.items() if name not in GIVEN}
    text, ids = value.get("prompt"), value.get("tokens")
    if (text is None) == (ids is None):
        got = "neither" if text is None else "both"
        return replace(refused(f"expected prompt or tokens, got {got}"), own=own)
    if ids is not None:
        found = _from_ids(ids) if _is_ids(ids) else refused(f"tokens are {ids!r:.60}")
    else:
        found = _checked_text(Prompt(text)) if isinstance(text, str) else refused(_unlike(text))
    if found.wrong is None:
        try:
            found = replace(found, targets=targets_of(value))
        except TraceError as error:
            found = replace(found, wrong=one_line(error))
    return replace(found, own=own)


def _checked_text(prompt: Prompt) -> Prompt:
    assert isinstance(prompt.given, str)
    if len(prompt.given) > LONGEST:
        size = len(prompt.given)
        return refused(f"prompt has {size} characters, expected at most {LONGEST}")
    return prompt


def targets_of(value: Mapping[Any, Any]) -> tuple[Target, ...] | None:
    """What `targets`, or `target` and `minus`, ask for.

    Returns:
        Tokens and differences; None where nothing is said.

    Raises:
        TraceError: they are none.
    """
    listed, one, minus = (value.get(name) for name in ("targets", "target", "minus"))
    if listed is not None and (one is not None or minus is not None):
        raise TraceError("expected targets, or target and minus, got both")
    if minus is not None and one is None:
        raise TraceError("minus needs a target")
    if one is not None:
        token = _token(one)
        return (token if minus is None else Difference(token, _token(minus)),)
    if listed is None:
        return None
    if not isinstance(listed, list | tuple):
        listed = [listed]
    return tuple(map(_target, listed))


def _target(value: Any) -> Target:
    if isinstance(value, Difference):
        return value
    if not isinstance(value, Mapping):
        return _token(value)
    pair, weight = value.get("difference"), value.get("weight", 1.0)
    unknown = set(value) - {"difference", "weight"}
    if unknown or not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TraceError(f'target is {value!r:.80}, expected such as {{"difference": ["a", "b"]}}')
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TraceError(f"target weight is {weight!r:.40}, expected a number")
    return Difference(_token(pair[0]), _token(pair[1]), float(weight))


def _token(value: Any) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TraceError(f"target is {value!r:.80}, expected a token's text or its id")
    return value


def target_names(targets: Iterable[Target] | None) -> list[Any] | None:
    """Targets as JSON, as graphs name them too."""
    return None if targets is None else [target_name(target) for target in targets]


def _plain(value: Any) -> Any:
    """A value of a caller's own that a column can hold."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < INT:
        return value
    text = value if isinstance(value, str) else _as_json(value)
    return text.encode(errors="replace").decode()[:LONGEST]


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return "?"


def _uniform(prompts: list[Prompt], names: Sequence[str]) -> list[Prompt]:
    """Prompts whose own values all have the type of their column."""
    if not names:
        return prompts
    kinds = column_types(prompts)
    own = [{name: _as(kinds[name], prompt.own.get(name)) for name in names} for prompt in prompts]
    return [replace(prompt, own=held) for prompt, held in zip(prompts, own, strict=True)]


def column_types(prompts: Iterable[Prompt]) -> dict[str, str]:
    """The type of every column of the caller's own, as Arrow names it."""
    seen: dict[str, set[type]] = {}
    for prompt in prompts:
        for name, value in prompt.own.items():
            seen.setdefault(name, set()).add(type(value))
    return {name: _kind(types - {type(None)}) for name, types in seen.items()}


def _kind(types: set[type]) -> str:
    if types == {bool}:
        return "bool"
    if types == {int}:
        return "int64"
    return "double" if types and types <= {int, float} else "string"


def _as(kind: str, value: Any) -> Any:
    if value is None or kind in ("bool", "int64"):
        return value
    if kind == "double":
        return None if math.isnan(value) else float(value)
    return value if isinstance(value, str) else _as_json(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of prompts, by which a dataset that was begun knows them again."""
    found = sha256()
    for prompt in prompts:
        held = [prompt.given, target_names(prompt.targets), prompt.own, prompt.wrong]
        found.update(json.dumps(held, default=str).encode(errors="surrogatepass"))
        found.update(b"\n")
    return found.hexdigest()
