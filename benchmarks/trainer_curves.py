"""Two sides of `trainers` at equal L0, and their table."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

Point = Mapping[str, Any]
HIGHER = ("replacement_score", "agreement", "recovered", "recovered_firmly")
"""Read off straight lines over log L0; of all others the logarithm is."""
COMPARED = ("error", "divergence", *HIGHER)


def at_l0(curve: Sequence[Point], name: str, l0: float) -> float | None:
    """A figure of a side at an L0 between two of its points.

    Args:
        curve: points of one side, in any order.
        name: of the figure.
        l0: active features a token.

    Returns:
        The figure on the straight line between the neighbours over log L0, of the figure's
        logarithm unless it is one of `HIGHER`; None beyond the curve, or where it has no such
        figure.
    """
    known = sorted((one["l0"], one[name]) for one in curve if one.get(name) is not None)
    for (below, low), (above, high) in pairwise(known):
        if below <= l0 <= above:
            part = math.log(l0 / below) / math.log(above / below) if above > below else 0.0
            if name in HIGHER:
                return low + part * (high - low)
            return math.exp(math.log(low) + part * math.log(high / low))
    return None


def compared(runs: Sequence[Point]) -> list[dict[str, Any]]:
    """Every point of every peer beside ours at its L0: ratios, differences of `HIGHER`."""
    found = []
    for one in runs:
        if one["side"] == one["against"]:
            continue
        curve = [other for other in runs if other["side"] == one["against"]]
        row: dict[str, Any] = {"side": one["side"], "setting": one["setting"], "l0": one["l0"]}
        for name in COMPARED:
            own = at_l0(curve, name, one["l0"])
            if own is not None and one.get(name) is not None:
                row[name] = own - one[name] if name in HIGHER else own / one[name]
        fast = fmean(other["tokens_a_cpu_second"] for other in curve)
        row["tokens_a_cpu_second"] = fast / one["tokens_a_cpu_second"]
        found.append(row)
    return found


def table(runs: Sequence[Point]) -> str:
    """In Markdown, a line a run, ours at equal L0 beside each of a peer's."""
    beside = {(one["side"], one["setting"]): one for one in compared(runs)}
    names = {
        "error": "error", "dead": "dead", "divergence": "KL", "agreement": "agreement",
        "replacement_score": "replacement", "recovered": "recovery",
    }  # fmt: skip
    heads = ["trainer", "setting", "L0", *names.values(), "tokens a CPU second"]
    ours = ["our error / its", "our score - its"]
    lines = ["| " + " | ".join([*heads, *ours]) + " |", "|---" * (len(heads) + len(ours)) + "|"]
    for one in runs:
        other = beside.get((one["side"], one["setting"]), {})
        score = other.get("replacement_score", other.get("recovered"))
        cells = [
            one["side"], f"{one['setting']:g}", f"{one['l0']:.2f}",
            *(_shown(one.get(name), ".3f") for name in names),
            f"{one['tokens_a_cpu_second']:,.0f}",
            _shown(other.get("error"), ".2f"), _shown(score, "+.3f"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
