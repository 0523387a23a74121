"""What a validation amounts to: two sentences, and the kinds of evidence a circuit needs.

Kinds: ablating the circuit breaks the answer (necessity), it gives the answer alone (sufficiency),
its edges matter and not only its nodes (composition), other prompts are broken less (specificity),
and everything may be resampled as far as a hypothesis says so (scrubbing). None stands for another:
a circuit can be sufficient by chance, and necessary as one of many.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from graphs import words
from tracer.validation.faithfulness import DEFAULT, EDGES, LEAST
from tracer.validation.held import ATTENTION, NORMS, NOTHING

ENOUGH = 0.8
"""A circuit that keeps this share of the lead, and answers as the model does, stands alone."""


def verdict(summary: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Read a summary as a user would want it read.

    Args:
        summary: as `validate` makes it, the verdict still missing.
        names: the target and its rival, and the answer of the circuit alone, as token strings:
            `target`, `rival`, `answer`.

    Returns:
        `text`, two sentences; `short`, for a picture's subtitle, None where no circuit was run;
        `nodes` and `edges`, the thresholds of the circuit; `evidence`, one entry a kind.
    """
    kept = summary["faithfulness"]
    return {
        "text": " ".join(_sentences(summary, {k: f"“{words.token(v)}”" for k, v in names.items()})),
        "short": None if kept is None or kept["clean"] <= 0 else _short(summary),
        "nodes": DEFAULT,
        "edges": EDGES,
        **({"keep_attention": True} if steered(summary) else {}),
        "evidence": list(evidence(summary)),
    }


def steered(summary: Mapping[str, Any]) -> bool:
    """Whether the circuit keeps what steers its attention, to the first order."""
    return summary.get("keep_attention") is True


def evidence(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every kind of evidence, measured or not.

    Returns:
        `kind`; `measured`; `value` and `control`, what it is to be compared with, None where they
        were not measured; `says`, what the two are, or what is missing.
    """
    kept = summary["faithfulness"]
    yield from _ablations(None if kept is None else kept["held"][NOTHING])
    yield _composition(summary["composition"])
    yield _specificity(summary["specificity"])
    yield _scrubbing(summary.get("scrubbing", []))


def _ablations(free: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    for kind, part, random, how in (
        ("necessity", "ablated", "random_ablated", "only the circuit at its mean"),
        ("sufficiency", "circuit", "random_spread", "the circuit alone"),
    ):
        yield _entry(
            kind,
            None if free is None else (free[part], free[random]["median"]),
            f"of the lead with {how}; control: median of random circuits",
            "needs a corpus",
        )


def _composition(cut: Mapping[str, Any] | None) -> dict[str, Any]:
    if cut is None:
        return _entry("composition", None, "", "the circuit has no edge between features")
    return _entry(
        "composition",
        (cut["cut"][NOTHING], cut["others_cut"][NOTHING]),
        f"of the lead without its {cut['edges']} edges between features; control: without the "
        f"{cut['other_edges']} others into the same",
    )


def _specificity(other: Mapping[str, Any] | None) -> dict[str, Any]:
    if other is None:
        return _entry("specificity", None, "", "needs other prompts")
    return _entry(
        "specificity",
        (other["own"], other["lead"]["median"]),
        "of the lead without its features anywhere; control: median of "
        f"{other['positions']} next tokens of {other['prompts']} other prompts, "
        f"{words.percent(other['changed'])} change",
    )


def _scrubbing(scrubbed: list[dict[str, Any]]) -> dict[str, Any]:
    known = [one for one in scrubbed if one["survives"] is not None]
    worst = min(known, key=lambda one: one["survives"], default=None)
    many = "" if len(known) == 1 else f", the worst of {len(known)} hypotheses"
    return _entry(
        "scrubbing",
        None if worst is None else (worst["survives"], worst["control"]),
        ""
        if worst is None
        else f"of the gap under {worst['name']!r}{many}; control: the prompt mislabelled",
        "needs hypotheses",
    )


def _entry(
    kind: str, found: tuple[float, float | None] | None, says: str, missing: str = ""
) -> dict[str, Any]:
    value, control = found or (None, None)
    return {
        "kind": kind,
        "measured": found is not None,
        "value": value,
        "control": control,
        "says": f"not measured: {missing}" if found is None else says,
    }


def _sentences(summary: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, str]:
    kept = summary["faithfulness"]
    if kept is None:
        return (
            "Whether this circuit gives the answer alone was not measured: that needs a corpus, "
            "which the means come from.",
            _ranks(summary),
        )
    if kept["clean"] <= 0:
        return (
            f"The model itself does not put {names['target']} before {names['rival']}, so there is "
            "no lead that a circuit could keep.",
            _ranks(summary),
        )
    circuit = "this circuit, what steers attention kept," if steered(summary) else "this circuit"
    return _alone(kept["held"][NOTHING], names, circuit), _held(kept["held"], steered(summary))


def _ranks(summary: Mapping[str, Any]) -> str:
    rank = summary["spearman"]["influence"]
    if rank is None:
        return "It has too few features to compare their influence with the effect of zeroing them."
    return (
        f"Influence ranks its {summary['features']} features as zeroing them does with a rank "
        f"correlation of {rank:.2f}."
    )


def stands(part: Mapping[str, Any]) -> bool:
    """Whether a circuit keeps enough of the lead, and more than nothing does."""
    return bool(part["circuit"] >= ENOUGH and 1 - part["empty"] >= LEAST)


def _alone(free: Mapping[str, Any], names: Mapping[str, str], circuit: str) -> str:
    lead = f"of the lead of {names['target']} over {names['rival']}"
    nothing = f"with nothing kept {words.percent(free['empty'])}"
    share = words.percent(free["circuit"])
    if names["answer"] != names["target"]:
        return (
            f"Kept alone, {circuit} does not give the answer: it says {names['answer']}, and "
            f"{share} {lead} is left ({nothing})."
        )
    left = f"{share} {lead} is left"
    if 1 - free["empty"] < LEAST:
        return (
            f"Kept alone, {circuit} gives the answer, but so does nothing at all: {left}, "
            f"{nothing}, so this says little."
        )
    weakly = "" if stands(free) else ", but weakly"
    return f"Kept alone, {circuit} gives the answer{weakly}: {left} ({nothing})."


def _held(held: Mapping[str, Mapping[str, Any]], steering: bool) -> str:
    free, attention, norms = (held[name] for name in (NOTHING, ATTENTION, NORMS))
    figures = (
        f"with attention held it keeps {words.percent(attention['circuit'])}, with norms held too "
        f"{words.percent(norms['circuit'])}"
    )
    if stands(free):
        ablated = words.percent(free["ablated"])
        return f"Without it {ablated} of the lead is left; {figures}."
    if stands(attention):
        missing = (
            "to the first order what steers it is kept, so it takes more than that"
            if steering
            else "so what steers attention is missing from it"
        )
        return f"Attention moves when the rest is ablated: {figures}, {missing}."
    if stands(norms):
        return f"Attention and norms move when the rest is ablated: {figures}."
    return f"Holding attention does not mend it: {figures}."


def _short(summary: Mapping[str, Any]) -> str:
    held = summary["faithfulness"]["held"]
    with_it = " with what steers attention" if steered(summary) else ""
    free, attention = (words.percent(held[name]["circuit"]) for name in (NOTHING, ATTENTION))
    return f"circuit alone{with_it} keeps {free} of the lead ({attention} with attention held)"
