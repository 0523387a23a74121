"""Fill what pages say of many prompts, influence and universality from what was measured.

    python -m docs.fill_many

Tables come from benchmarks/results/ and `benchmarks.prompts_plan`; `tests/test_docs_many.py`
compares.
"""

import json
from typing import Any

from benchmarks import prompts_plan
from docs.fill_queries import table
from docs.fill_readme import ROOT, between, replace

RESULTS = ROOT / "benchmarks" / "results"


def measured(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def places() -> dict[tuple[str, str], str]:
    """Page and mark -> what stands there."""
    return {
        ("docs/guides/many-prompts.md", "consensus circuits"): consensus(),
        ("docs/guides/many-prompts.md", "real model"): real(),
        ("docs/guides/many-prompts.md", "plan"): "\n".join(prompts_plan.lines()),
        ("docs/guides/influence.md", "influence"): influence(),
        ("docs/guides/evaluate.md", "universality"): universality(),
    }


def consensus() -> str:
    """Each behaviour's consensus circuit: size, stability, and what its ablation does."""
    found = measured("consensus")
    rows = []
    for name in found["behaviours"]:
        circuit, loss = found["circuits"][name], found["consensus"]["by circuit"][name]
        middle, low, high = circuit["stability"]
        strongest = max(circuit["features"], key=lambda one: one["influence"], default=None)
        rows.append(
            (
                name,
                len(circuit["features"]),
                circuit["own"],
                f"{middle:.2f} ({low:.2f} to {high:.2f})" if strongest else "empty",
                named(strongest),
                f"{loss['loss']:.2f}",
                f"{loss['its loss']:.2f}, {loss['most beside']}",
            )
        )
    head = ("behaviour", "features", "its own", "stability", "carries most", "loss", "most beside")
    return table(head, rows) + "\n\n" + losses(found)


def named(feature: dict[str, Any] | None) -> str:
    """A feature with its share and interval."""
    if feature is None:
        return ""
    share, low, high = (100 * feature[name] for name in ("influence", "low", "high"))
    return f"L{feature['layer']}/{feature['feature']}: {share:.1f} % ({low:.1f} to {high:.1f})"


def real() -> str:
    """A real model by its neurons, in a sentence."""
    found = measured("many_prompts")["real"]
    return (
        f"{found['graphs']} of {found['prompts']} prompts traced with at most "
        f"{found['features at most']} features each, {found['graphs a CPU second']:.2f} graphs a "
        f"CPU second, {found['MiB at most']:,.0f} MiB at most "
        f"({found['MiB with the model']:,.0f} with the model loaded and one prompt traced); "
        f"{found['single']['same nodes']} of {found['single']['graphs']} graphs held against "
        "single traces have the same nodes, weights differ by "
        f"{found['single']['largest difference of a weight']:.0e} at most. Under that cap "
        f"{100 * found['uncovered in the mean']:.1f} % of the influence ends in neurons that are "
        "no nodes: a model's own neurons are many."
    )


TWINS = ("two hops, seen cities", "two hops, TEST cities")
"""One behaviour, asked about two sets of cities."""


def losses(found: dict[str, Any]) -> str:
    """The definitions beside each other."""
    whole, own = found["consensus"], found["own"]
    empty = sum(circuit["own"] == 0 for circuit in found["circuits"].values())
    return (
        f"Mean loss of a circuit's own behaviour {whole['diagonal']:.2f} nats, of the others "
        f"{whole['beside']:.2f}: {whole['ratio']:.1f} times, where {whole['asked']:.0f} times were "
        f"wanted; {apart(found):.2f} times if the two kinds of two hops, one behaviour asked about "
        "two sets of cities, are not held against each other. Without the features that stand in "
        f"another behaviour's circuit too it is {own['diagonal']:.2f} and {own['beside']:.3f}, but "
        f"{empty} of {len(found['circuits'])} circuits are then empty. {distinctive(found)}"
    )


def distinctive(found: dict[str, Any]) -> str:
    """The third definition, which leaves no circuit empty."""
    one, count = found["distinctive"], len(found["behaviours"])
    return (
        f"Of each behaviour the {one['features a circuit']} features whose frequency is furthest "
        "above the mean of the others (so many because it reached what was wanted on "
        f"{one['chosen on prompts of each behaviour']} of the traced prompts of each): "
        f"{one['diagonal']:.2f} and {one['beside']:.2f} on the other prompts, {one['ratio']:.1f} "
        f"times, and {one['circuits whose own behaviour loses most']} of {count} hit their own "
        "behaviour most; behaviours of one kind, such as those that count on, share their features."
    )


def apart(found: dict[str, Any]) -> float:
    """The ratio without the two cells in which two kinds of two hops meet."""
    names, cells = found["behaviours"], found["consensus"]["table"]
    beside = [
        value
        for name, row in zip(names, cells, strict=True)
        for other, value in zip(names, row, strict=True)
        if name != other and {name, other} != set(TWINS)
    ]
    return found["consensus"]["diagonal"] / (sum(beside) / len(beside))


def influence() -> str:
    """The check by training without."""
    found = measured("influence")
    kinds = found["rank correlation, low, high"]
    rows = [
        (
            name,
            *(interval(one[over]) for over in ("all groups", "groups that are not its own")),
            f"{one['questions whose own group is predicted to matter most']} "
            f"of {len(found['questions'])}",
        )
        for name, one in kinds.items()
    ]
    head = ("predicted by", "all groups", "groups that are not its own", "own group first")
    took = found["CPU seconds"]
    said = (
        f"{len(found['groups'])} groups of {found['sentences a group']} sentences out of "
        f"{found['sentences']:,}, {len(found['questions'])} questions; the own group is what "
        f"mattered most to {found['questions whose own group matters most']} of them. Factors and "
        f"scores took {took['factors and scores']:.0f} CPU seconds."
    )
    return f"{table(head, rows)}\n\n{said}"


def universality() -> str:
    """Streams and features of the default beside the other models'."""
    found = measured("universality")
    others = list(found["neurons"])
    depths = range(len(found["neurons"][others[0]]["CKA"]))
    rows: list[tuple[Any, ...]] = [
        (name, what, *(f"{one[what][depth]:.2f}" for depth in depths))
        for name, one in found["neurons"].items()
        for what in ("CKA", "aligned")
    ]
    streams = table(("model", "stream", *map(str, depths)), rows)
    neurons = [
        (
            name,
            one["features that fired"],
            *(f"{100 * share:.1f} %" for share in one["found again"].values()),
            f"{one['median correlation']:.2f}",
        )
        for name, one in found["neurons"].items()
    ]
    least = [f"found again at {one}" for one in found["neurons"][others[0]]["found again"]]
    matched = table(("in", "neurons", *least, "median correlation"), neurons)
    about = found["models"]["second seed"]
    right = ", ".join(
        f"{name.replace('_', ' ')} {100 * share:.0f} %"
        for name, share in about["answers right"].items()
    )
    return (
        f"{streams}\n\n{matched}\n\nThe second seed was trained for {about['steps']:,} of the "
        f"recipe's 9,600 steps ({about['CPU seconds']} CPU seconds). Of its answers are right: "
        f"{right}. {found['sentences']} sentences."
    )


def interval(values: list[float]) -> str:
    """A mean with its interval."""
    middle, low, high = values
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def fill() -> None:
    """Rewrite the pages."""
    for (page, mark), shown in places().items():
        replace(page, between(mark), shown)


if __name__ == "__main__":
    fill()
