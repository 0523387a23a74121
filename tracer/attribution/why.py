"""Why a model says one token and not another: the difference of two logits, traced."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from graphs import AttributionGraph, NodeKind, NodePath, words
from replacement_models import Recording, ReplacementModel
from replacement_models.process import one_call
from tracer.attribution.targets import Difference, token_id
from tracer.attribution.trace import trace
from tracer.errors import TraceError


@dataclass(frozen=True, eq=False)
class Why:
    """What speaks for one token over another, and what against it."""

    graph: AttributionGraph
    """Of the difference of both logits, unpruned."""
    said: str
    """The token explained."""
    instead: str
    """The token it is set against."""
    probabilities: tuple[float, float]
    """Of both."""
    difference: float
    """The logit of the first less that of the second, before a cap."""

    def sums(self) -> dict[str, float]:
        """What the difference is the sum of, exactly (the conservation law of its row).

        Returns:
            exciting and suppressing: direct effects of tokens, features and errors of either sign;
            constant: biases and positions; left_out: features that are no nodes. In logits.
        """
        last = self.graph.nodes.num_rows - 1
        effects = self.graph.effect[[last]].toarray().ravel().astype(np.float64)
        row = self.graph.nodes.slice(last, 1).to_pylist()[0]
        return {
            "exciting": float(effects[effects > 0].sum()),
            "suppressing": float(effects[effects < 0].sum()),
            "constant": row["constant"] or 0.0,
            "left_out": row["left_out"] or 0.0,
        }

    def strongest(self, sign: int, count: int) -> list[dict[str, Any]]:
        """Features with the largest direct effects of one sign on the difference.

        Args:
            sign: 1 for the first token, -1 for the second.
            count: at most so many.

        Returns:
            Rows of the node table, each with its `effect` in logits, largest first.
        """
        last = self.graph.nodes.num_rows - 1
        effects = self.graph.effect[[last]].toarray().ravel()
        rows = [
            {**row, "effect": float(effect)}
            for row, effect in zip(self.graph.nodes.to_pylist(), effects, strict=True)
            if row["kind"] == NodeKind.FEATURE and sign * effect > 0
        ]
        return sorted(rows, key=lambda row: -abs(row["effect"]))[:count]

    def sentences(self, count: int = 5) -> list[str]:
        """The answer in words.

        Args:
            count: of paths of either kind.

        Returns:
            Lines; percentages of paths are parts of all that flows into the difference.
        """
        said, instead = (f"“{words.token(text)}”" for text in (self.said, self.instead))
        a, b = map(words.percent, self.probabilities)
        sums, (excite, suppress) = self.sums(), self.graph.by_sign()
        rest = f" and {sums['left_out']:+.2f} of features left out" if sums["left_out"] else ""
        lines = [
            f"The model gives {said} {a} and {instead} {b}: the logit of {said} is "
            f"{abs(self.difference):.2f} {'higher' if self.difference >= 0 else 'lower'}.",
            f"It is the sum of {sums['exciting']:+.2f} from what speaks for {said}, "
            f"{sums['suppressing']:+.2f} from what speaks for {instead}, {sums['constant']:+.2f} "
            f"of biases{rest}.",
            f"Over all paths {words.percent(excite)} of what flows in excites the difference and "
            f"{words.percent(suppress)} suppresses it.",
        ]
        for sign, what in ((1, f"For {said} over {instead}"), (-1, f"Against it, for {instead}")):
            paths = self.graph.paths(count, sign)
            lines.append(f"{what}:" if paths else f"{what}: no path.")
            lines += [f"  {self.describe(path)}" for path in paths]
        return lines

    def describe(self, path: NodePath) -> str:
        """A path in one line, with its part of all that flows into the difference."""
        rows = self.graph.nodes.take(list(path.nodes)).to_pylist()
        effects = [self.graph.effect[end, start] for start, end in pairwise(path.nodes)]
        way = words.route(rows[:-1], effects[:-1], list(self.graph.metadata.get("tokens", [])))
        said, instead = (f"“{words.token(text)}”" for text in (self.said, self.instead))
        sign = "→" if effects[-1] > 0 else "⊣"
        return f"{way} {sign} {said} over {instead}   {words.percent(path.strength)}"


@one_call()
@torch.no_grad()
def why(
    model: ReplacementModel,
    prompt: str | Sequence[int],
    instead: str | int,
    said: str | int | None = None,
    **options: Any,
) -> Why:
    """Why a model says one token and not another.

    Args:
        model: what to ask.
        prompt: text, or token ids taken as they stand.
        instead: the token it does not say: one token (mind the space in front), or its id.
        said: the token to explain; None: the likeliest.
        options: of `tracer.trace`, but for `targets`.

    Returns:
        The graph of the difference of both logits, with paths for and against in words.

    Raises:
        TraceError: a token is none, both are one, or the model prefers the one it is said not to
            say; as `tracer.trace` besides.
        ModelError: the prompt does not fit the model.
    """
    if "targets" in options:
        raise TraceError("why has its own target: leave targets out, or use tracer.trace")
    other = token_id(model, instead)
    if said is None:
        first = _likeliest(model, model.tokenize(prompt), options.get("position", -1))
    else:
        first = token_id(model, said)
    if first == other:
        raise TraceError(
            f"the model does say {model.token_string(other)!r} here: name a token that it does not "
            "say, or what it should be set against (said, --rather)"
        )
    seen: list[Recording] = []
    told = options.pop("on_recording", None)

    def recorded(recording: Recording) -> None:
        seen.append(recording)
        if told is not None:
            told(recording)

    graph = trace(
        model, prompt, targets=[Difference(first, other)], on_recording=recorded, **options
    )
    logits = seen[0].logits_before_cap[-1].double()
    odds = seen[0].logits[-1].double().softmax(-1)
    return Why(
        graph,
        model.token_string(first),
        model.token_string(other),
        (float(odds[first]), float(odds[other])),
        float(logits[first] - logits[other]),
    )


def _likeliest(model: ReplacementModel, tokens: Sequence[int], position: int) -> int:
    if not -len(tokens) <= position < len(tokens):
        raise TraceError(f"position {position} is not in the prompt's 0..{len(tokens) - 1}")
    read = tokens[: range(len(tokens))[position] + 1]
    found = model.record(read, keep_patterns=False, last_logits=True)
    return int(found.logits[-1].argmax())
