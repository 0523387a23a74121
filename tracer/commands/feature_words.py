"""Printing what is known of features."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracer.commands.say import say
from tracer.commands.tables import print_table, quoted

if TYPE_CHECKING:
    from tracer import Feature, FeatureStore, ReplacementModel
    from tracer.features.differing import Differing
    from tracer.features.feature import Example
    from tracer.features.labels.named import Named
    from tracer.features.search import Hit
    from tracer.features.separating import Separating

BEFORE, AFTER = 14, 6
"""Tokens shown around the one that an example is of."""


def print_feature(store: "FeatureStore", feature: "Feature") -> None:
    """Print statistics, tokens and neighbours."""
    counted = store.about["tokens_counted"]
    rows: list[tuple[str, object]] = [("feature", f"{feature.layer}/{feature.feature}")]
    rows += label_rows(store, feature)
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


def label_rows(store: "FeatureStore", feature: "Feature") -> list[tuple[str, object]]:
    """The label with how true it is, and how mixed the feature is."""
    from graphs import words

    found = store.label_of(feature.layer, feature.feature)
    row = store.labels.rows.get((feature.layer, feature.feature))
    rows: list[tuple[str, object]] = []
    if found.label:
        rows.append(("label", f"{words.visible(found.label)} ({truth(found, row)})"))
    elif row is not None:
        rows.append(("label", f"none is true enough: {untrue(row)}"))
    if found.mixed is not None:
        several = "; polysemantic" if found.polysemantic else ""
        rows.append(("mixed", f"{found.mixed:.1f} unrelated kinds of context{several}"))
    return rows


def truth(found: "Named", row: "Mapping[str, Any] | None") -> str:
    """How true a label is, in words."""
    if found.source == "user":
        return "a user's own"
    if found.f1 is None or row is None:
        return "came with the dictionary, not measured"
    what = "F1 {f1:.2f} on text held out, precision {precision:.2f}, recall {recall:.2f}"
    parts = [what.format(**row)]
    if row["outside_f1"] is not None:
        parts.append(f"elsewhere {row['outside_f1']:.2f}")
    if row["fuzzing"] is not None:
        parts.append(f"judged by the endpoint, fuzzing {row['fuzzing']:.2f}")
    else:
        parts.append(f"its most frequent tokens {row['list_f1']:.2f}")
    if row["above"] > 0:
        parts.append(f"of activations above {row['above']:.3g}")
    return "; ".join(parts)


def untrue(row: "Mapping[str, Any]") -> str:
    """Why no label is shown."""
    from graphs import words

    if not row["fires"]:
        return "it does not fire on the text held out"
    if row["label"] is None:
        return "nothing tells where it fires better than its most frequent tokens"
    return f"the best, {words.visible(row['label'])}, has F1 {row['f1']:.2f}" + (
        f", and text held out contradicts {len(row['contradicted'])} of its alternatives"
        if row["contradicted"]
        else ""
    )


def print_labelled(store: "FeatureStore") -> None:
    """Print how many labels a store has, and how true they are."""
    rows = [*store.labels.rows.values()]
    shown = [row for row in rows if row["shown"]]
    fires = sum(row["fires"] > 0 for row in rows)
    good = sum(row["f1"] >= 0.7 for row in shown)
    mixed = sum(bool(row["polysemantic"]) for row in rows)
    print_table(
        (),
        [
            ("features", f"{len(rows)}, of which {fires} fire on the text held out"),
            ("true labels", f"{len(shown)} (F1 of 0.5 or more), {good} of 0.7 or more"),
            ("polysemantic", mixed),
        ],
    )
    say(f"Saved labels in {store.path}. To see one: tracer features show L/F --store ...")


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
