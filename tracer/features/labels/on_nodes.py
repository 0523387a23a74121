"""Labels of a graph's nodes: what stands for a feature, said of this prompt.

A predicate with several alternatives begins with the one that holds in the prompt, and says how
many more there are: `on “hot” +4`. What all of them are comes first where there is a word for it:
`on a city in Texas (“Austin” +4)`. The whole predicate stands in the graph's metadata.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphs import AttributionGraph, NodeKind, words
from tracer.features.labels.named import MIXED, Named
from tracer.features.labels.names import SPELLED, START
from tracer.features.labels.predicates import NEAR
from tracer.features.labels.table import ENDPOINT, PREDICATE, USER
from tracer.features.store import FeatureStore

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What stands in a prompt, as words."""

    tokens: Sequence[str]
    position: int
    """Where the next token is explained."""
    answers: Sequence[str]
    """What is said there."""

    def words(self, kind: str, position: int) -> list[str]:
        """What a condition of one kind looks at."""
        if kind in ("says", "promotes"):
            return [*self.answers] if position == self.position else []
        first = {"on": position, "after": position - 1, "near": position - NEAR}.get(kind, 0)
        last = position + 1 if kind == "on" else position
        return [words.token(text) for text in self.tokens[max(0, first) : last]]


class Classes:
    """Words by class, and what several words have in common."""

    def __init__(self, held: Mapping[str, Iterable[str]]) -> None:
        """Take the words of each class by its name."""
        self.held = {name: frozenset(members) for name, members in held.items()}
        self._of: dict[str, set[str]] = {}
        for name, members in self.held.items():
            for member in members:
                self._of.setdefault(member, set()).add(name)

    def holding(self, names: Iterable[str]) -> str | None:
        """The smallest class that holds all words; each is a word, or its spellings with /."""
        shared = [set().union(*(self.of(word) for word in one.split("/"))) for one in names]
        found = set.intersection(*shared)
        return min(found, key=lambda name: (len(self.held[name]), name)) if found else None

    def of(self, word: str) -> set[str]:
        """Names of the classes that a word is in."""
        return self._of.get(word, set())


def with_labels(graph: AttributionGraph, store: FeatureStore) -> AttributionGraph:
    """A graph with the labels of a store.

    Features that the store has no words for keep what they promote, which then says so.

    Args:
        graph: of the store's dictionary.
        store: with labels or without.

    Returns:
        The graph with other labels; what is known of each in `metadata["labels"]`, by `L/F`.
    """
    prompt = _prompt(graph)
    classes = Classes(store.labels.about.get("classes", {}))
    labels, known = {}, {}
    names = ("id", "kind", "layer", "feature", "position", "activation", "label")
    for row in graph.nodes.select(names).to_pylist():
        if row["kind"] == NodeKind.FEATURE:
            found = store.label_of(row["layer"], row["feature"])
            known[f"{row['layer']}/{row['feature']}"] = found.as_json()
            labels[row["id"]] = _label(found, row, prompt, classes)
    labelled = graph.relabel(labels)
    labelled.metadata["labels"] = known
    labelled.metadata["dictionary_hash"] = store.about["dictionary_hash"]
    return labelled


def _label(found: Named, row: Json, prompt: Prompt, classes: Classes) -> str:
    text = _text(found, row, prompt, classes)
    if text is None:
        promoted = " · " in (row["label"] or "")
        text = f"promotes {row['label'].rpartition(' · ')[0]}" if promoted else ""
    on = prompt.tokens[row["position"]].strip()
    mixed = found.polysemantic and text and found.source != USER
    return f"{MIXED if mixed else ''}{text} · {on}"


def _prompt(graph: AttributionGraph) -> Prompt:
    logits = [row for row in graph.nodes.to_pylist() if row["kind"] == NodeKind.LOGIT]
    best = sorted(logits, key=lambda row: -(row["probability"] or 0))[:1]
    return Prompt(
        graph.metadata["tokens"],
        max((row["position"] for row in logits), default=-1),
        [words.token(row["text"]) for row in best if row["text"]],
    )


def _text(found: Named, row: Json, prompt: Prompt, classes: Classes) -> str | None:
    """What is said of one node; None where nothing is known."""
    measured = found.source in (PREDICATE, ENDPOINT)
    if row["activation"] <= (found.above if measured else 0) and found.source != USER:
        # Measured of stronger activations, or of positive ones.
        weak = measured and row["activation"] > 0 and found.example
        return f"e.g. {found.example}" if weak else None
    if found.source == PREDICATE and found.predicate:
        clauses = json.loads(found.predicate)
        return in_prompt(clauses, row["position"], prompt, classes)
    return found.text


def in_prompt(
    clauses: Sequence[Sequence[Json]],
    position: int,
    prompt: Prompt,
    classes: Classes,
) -> str:
    """A predicate in a few words, what holds in the prompt first.

    `mostly` stands before it where none of it holds there: this firing is one of those it misses.

    Args:
        clauses: as `Predicate.as_json` gives them.
        position: of the node.
        prompt: what stands there.
        classes: words of each class that was given.
    """
    said, start = [], words.token(prompt.tokens[0])
    for clause in clauses:
        parts = [
            _condition(one, prompt.words(one["kind"], position), classes, start) for one in clause
        ]
        said.append((all(fits for fits, _ in parts), ", ".join(text for _, text in parts)))
    said.sort(key=lambda one: not one[0])
    more = f"; +{len(said) - 1}" if len(said) > 1 else ""
    return f"{'' if said[0][0] else 'mostly '}{said[0][1]}{more}"


def _condition(
    condition: Json, seen: Sequence[str], classes: Classes, start: str
) -> tuple[bool, str]:
    """Whether a condition holds, or cannot be told to fail, and its words."""
    kind, every = condition["kind"], condition["any"]
    if not every:
        return True, kind
    unseen = kind in ("says", "promotes") and not seen
    fitting = [one for one in every if any(_is(one, word, classes, start) for word in seen)]
    first = (fitting or every)[0]
    name = first["name"] if first["class"] else f"“{words.token(first['name'])}”"
    more = f" +{len(every) - 1}" if len(every) > 1 else ""
    shared = _in_common(every, classes)
    if shared is None:
        return bool(fitting) or unseen, f"{kind} {name}{more}"
    fits = fitting or any(shared in classes.of(word) for word in seen)
    mostly = "mostly " if fits and not fitting else ""
    return bool(fits) or unseen, f"{kind} {shared} ({mostly}{name}{more})"


def _in_common(every: Sequence[Json], classes: Classes) -> str | None:
    """The class that several words have in common, if they are words and there is one."""
    if len(every) < 2 or any(one["class"] for one in every):
        return None
    return classes.holding(one["name"] for one in every)


def _is(alternative: Json, word: str, classes: Classes, start: str) -> bool:
    name = alternative["name"]
    if not alternative["class"]:
        return word == words.token(name) or word in name.split("/")
    spelled = SPELLED.get(name)
    if name == START:
        return word == start
    return name in classes.of(word) or bool(spelled and spelled.fullmatch(word))
