"""Printing what is known of features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracer.commands.say import say
from tracer.commands.tables import print_table, quoted

if TYPE_CHECKING:
    from tracer import Feature, FeatureStore, ReplacementModel
    from tracer.features.differing import Differing
    from tracer.features.feature import Example
    from tracer.features.search import Hit
    from tracer.features.separating import Separating

BEFORE, AFTER = 14, 6
"""Tokens shown around the one that an example is of."""


def print_feature(store: "FeatureStore", feature: "Feature") -> None:
    """Print statistics, tokens and neighbours."""
    from graphs import words

    counted = store.about["tokens_counted"]
    rows: list[tuple[str, object]] = [("feature", f"{feature.layer}/{feature.feature}")]
    if feature.label:
        rows.append(("label", words.visible(feature.label)))
    rows.append(("active", f"{feature.active} of {counted} tokens, {feature.density:.2%}"))
    for name in ("mean", "maximum", "minimum"):
        if getattr(feature, name) is not None:
            rows.append(("mean when active" if name == "mean" else name, getattr(feature, name)))
    for title, name in (("fires on", "fires_on"), ("promotes", "promoted")):
        rows.append((title, token_list(getattr(feature, name))))
    rows.append(("suppresses", token_list(feature.suppressed)))
    if feature.row.get("promoted_later"):
        rows.append(("promotes later", token_list(feature.promoted_later)))
    print_table((), rows)
    for column, title, unit in (
        ("inputs", "reads from", "virtual weight"),
        ("outputs", "writes to", "virtual weight"),
        ("similar", "writes alike", "cosine"),
        ("together", "fires with", "share of its tokens"),
    ):
        near = getattr(feature, column)
        lines = [
            (f"{at['layer']}/{at['feature']}", at["weight"], store.name(at["layer"], at["feature"]))
            for at in near
        ]
        if lines:
            print_table((title, unit, ""), lines)


def token_list(tokens: Sequence[str]) -> str:
    """Tokens in a row."""
    from graphs import words

    return ", ".join(words.token(token) for token in tokens) or "nothing"


def print_example_list(feature: "Feature", count: int) -> None:
    """Print the strongest examples, and the most negative ones, in their context."""
    for kind, title in (("top", "strongest examples"), ("bottom", "most negative examples")):
        found = [one for one in feature.examples if one.kind == kind][:count]
        if found:
            print_table(("activation", title), [(one.activation, context(one)) for one in found])


def context(example: "Example") -> str:
    """An example's document around its token, which stands in brackets."""
    from graphs import words

    first = max(example.document.start, example.position - BEFORE)
    last = min(example.document.stop, example.position + AFTER + 1)
    parts = [words.visible(text) for text in example.texts[first:last]]
    at = example.position - first
    bare = parts[at].lstrip(" ")
    parts[at] = f"{' ' * (len(parts[at]) - len(bare))}[{bare or '␣'}]"
    cut = (
        "…" if first > example.document.start else "",
        "…" if last < example.document.stop else "",
    )
    return cut[0] + "".join(parts).strip() + cut[1]


def print_hits(store: "FeatureStore", hits: "Sequence[Hit]", by: str) -> None:
    """Print what a search found."""
    if not hits:
        say("no feature matches")
        return
    score = {"token": "share", "promoted": "deviations", "text": "share", "similar": "cosine"}
    rows = [
        (f"{hit.layer}/{hit.feature}", hit.score, store.name(hit.layer, hit.feature))
        for hit in hits
    ]
    print_table(("feature", score.get(by, "match"), "label, or what it promotes"), rows)


def print_differing(model: "ReplacementModel", prompt: str, found: "Sequence[Differing]") -> None:
    """Print features that fire on one prompt and not on another."""
    tokens = [model.token_string(token) for token in model.tokenize(prompt)]
    if not found:
        say("no feature fires on the first prompt and not on the other")
        return
    rows = [
        (
            f"{one.layer}/{one.position}/{one.feature}",
            quoted(tokens[one.position]),
            one.activation,
            one.elsewhere,
            one.written,
            model.labels.get((one.layer, one.feature), ""),
        )
        for one in found
    ]
    print_table(("feature", "at", "activation", "on the other", "written", "label"), rows)


def print_separating(model: "ReplacementModel", found: "Sequence[Separating]") -> None:
    """Print the features that part two sets of texts."""
    if not found:
        say("no feature fires on any text")
        return
    rows = [
        (
            f"{one.layer}/{one.feature}",
            one.effect,
            one.auroc,
            one.p,
            one.q,
            one.mean,
            one.mean_other,
            model.labels.get((one.layer, one.feature), ""),
        )
        for one in found
    ]
    print_table(("feature", "effect", "AUROC", "p", "q", "first", "second", "label"), rows)
