"""Label the features of a store: read the texts, choose, score, write.

1. the corpus is dealt out: of four documents two to choose on, one to mend on, one held out, which
   is text of its own where the caller gives any;
2. the model runs over each once (observed.py);
3. every feature is labelled (choosing.py), and its row written (table.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from replacement_models import ReplacementModel
from replacement_models.process import one_call
from replacement_models.text.documents import Corpus, Document, documents
from tracer.errors import TraceError
from tracer.features.labels import table
from tracer.features.labels.choosing import Label, Side, Sides, label
from tracer.features.labels.endpoint import Endpoint, SpentError
from tracer.features.labels.explained import explain
from tracer.features.labels.names import Names
from tracer.features.labels.observed import observe
from tracer.features.labels.scoring import Score
from tracer.features.settings import Settings
from tracer.features.unembedded import Unembedded

DEALT = (0, 1, 0, 2)
"""Which text a document goes to, in turns: to choose on (0), to mend on (1), held out (2)."""
HELD_OUT = 2
PASSAGE = 2000
"""Characters of a document that go to the same text, or tokens, unless each document is a prompt:
large files are few, and every one of them is of its own kind."""
DENSE = 0.25
"""Density from which a feature counts as firing only among its strongest."""
AMONG = 8
"""Position in QUANTILES of the quantile above which such a feature fires: a tenth of its tokens."""
PROMOTED = 10
"""Tokens of its decoder that a label may say a feature promotes."""
Progress = Callable[[int, int | None, str], None]
Place = tuple[int, int]


@dataclass(frozen=True)
class Texts:
    """What labels are chosen and scored on."""

    corpus: Corpus
    held_out: Corpus | None = None
    outside: Corpus | None = None
    field: str = "text"
    lines: bool = False

    whole: bool = False
    """Documents are dealt out as they are; otherwise long ones in passages."""
    classes: Mapping[str, Sequence[str]] | None = None
    """Words by the name of their class, for labels to name."""

    def part(self, number: int) -> Iterator[Document]:
        """Documents to choose on (0), to mend on (1), held out (2).

        Raises:
            TraceError: there is none, because the corpus has too few documents.
        """
        deal = DEALT if self.held_out is None else DEALT[:3]
        if number == HELD_OUT and self.held_out is not None:
            found = self._documents(self.held_out)
        else:
            every = enumerate(self._documents(self.corpus))
            found = (one for at, one in every if deal[at % len(deal)] == number)
        return _some(
            found,
            f"the corpus has too few documents to be dealt out, expected {len(deal)} or more: "
            "labels are chosen on some and scored on others (are its documents lines? --lines)",
        )

    def elsewhere(self) -> Iterator[Document] | None:
        """Text that is not of the corpus' kind; None where none was given."""
        if self.outside is None:
            return None
        return _some(self._documents(self.outside), "the text from elsewhere holds no document")

    def _documents(self, corpus: Corpus) -> Iterator[Document]:
        for document in documents(corpus, self.field, self.lines):
            yield from [document] if self.whole else passages(document)


def passages(document: Document) -> Iterator[Document]:
    """A document in pieces of at most PASSAGE characters, or tokens, cut between words."""
    start = 0
    while start < len(document):
        end = start + PASSAGE
        if isinstance(document, str) and end < len(document):
            end = max(document.rfind(" ", start, end), document.rfind("\n", start, end)) + 1
            end = end if end > start else start + PASSAGE
        yield document[start:end]
        start = end


def _some(found: Iterator[Document], none: str) -> Iterator[Document]:
    for first in found:
        return chain([first], found)
    raise TraceError(none)


class Store(Protocol):
    """What labelling asks of a feature store (features/store.py)."""

    @property
    def path(self) -> Path:
        """Its folder."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What it is made of."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have features."""

    @property
    def labels(self) -> table.Labels:
        """Labels that it has already."""

    def check(self, model: ReplacementModel) -> None:
        """Refuse another dictionary's model."""

    def features(self, layer: int) -> pa.Table:
        """One row a feature."""

    def strongest(self, layer: int) -> dict[int, Any]:
        """The strongest example of every feature."""


@one_call()
def label_features(
    store: Store,
    model: ReplacementModel,
    texts: Texts,
    *,
    features: Sequence[Place] | None = None,
    max_tokens: int = 100_000,
    endpoint: Endpoint | None = None,
    progress: Progress | None = None,
) -> None:
    """Label features and write `labels.parquet` into their store; see `FeatureStore.label`."""
    store.check(model)
    say = progress or (lambda done, total, what: None)
    settings = replace(Settings(**store.about["settings"]), max_tokens=max_tokens)
    names = Names.of(model, texts.classes)
    wanted = [*features] if features is not None else _all(store)
    for at in wanted:
        _check(store, *at)
    floors = _of_wanted(thresholds(store), wanted)
    sides = _sides((store, floors), model, texts, names, settings, say)
    rows = dict(store.labels.rows) if features is not None else {}
    maxima = {layer: store.features(layer)["maximum"].to_pylist() for layer in store.layers}
    for number, (layer, feature) in enumerate(wanted):
        say(number, len(wanted), "Labelling features")
        found = label(sides, layer, feature, maxima[layer][feature])
        rows[layer, feature] = row(found, None)
    if endpoint is not None:
        _ask(endpoint, model, sides, {at: rows[at] for at in wanted}, say)
    for layer, shown in _examples(store, {layer for layer, _ in wanted}):
        for feature, example in shown.items():
            if (layer, feature) in rows:
                rows[layer, feature] = rows[layer, feature] | {"example": example.in_words()}
    table.write(
        [rows[at] for at in sorted(rows)], _about(store, sides, texts.classes or {}), store.path
    )


def row(found: Label, example: str | None) -> dict[str, Any]:
    """One row of the table."""
    held: Score | None = found.held_out
    return {
        "layer": found.layer,
        "feature": found.feature,
        "label": str(found.predicate) if found.predicate else None,
        "source": table.PREDICATE if found.predicate else None,
        "predicate": _json(found.predicate.as_json()) if found.predicate else None,
        "shown": found.shown,
        "above": found.above,
        "f1": held.f1 if held and found.predicate else None,
        "precision": held.precision if held else None,
        "recall": held.recall if held else None,
        "fires": found.fires,
        "chosen_f1": found.chosen.f1 if found.chosen else None,
        "outside_f1": found.outside.f1 if found.outside else None,
        "always_f1": found.always,
        "list_f1": found.token_list,
        "fuzzing": None,
        "contradicted": list(found.contradicted),
        "mixed": found.mixed,
        "polysemantic": found.polysemantic,
        "example": example,
    }


def _ask(
    endpoint: Endpoint,
    model: ReplacementModel,
    sides: Sides,
    rows: Mapping[Place, dict[str, Any]],
    say: Progress,
) -> None:
    """Let a language model name features that have no true label, as far as the budget goes."""
    nameless = [at for at, known in rows.items() if not known["shown"] and known["fires"]]
    for number, at in enumerate(nameless):
        say(number, len(nameless), "Asking the endpoint")
        above = rows[at]["above"]
        firing, apart = (side.observed.firing(*at, above) for side in (sides.pick, sides.held_out))
        try:
            found = explain(endpoint, model, sides.pick, sides.held_out, firing, apart)
        except SpentError:
            return
        if found is not None and found.shown:
            rows[at].update(
                label=found.text, source=table.ENDPOINT, predicate=None, shown=True, f1=found.f1,
                precision=found.precision, recall=found.recall, fuzzing=found.fuzzing,
                contradicted=[],
            )  # fmt: skip


def thresholds(store: Store) -> dict[int, Float[np.ndarray, " features"]]:
    """Above which activation each feature fires: zero, or of dense ones their uppermost tenth."""
    found = {}
    for layer in store.layers:
        rows = store.features(layer)
        density = rows["density"].to_numpy()
        bounds = rows["quantiles"].to_pylist()
        found[layer] = np.array(
            [
                max(0.0, some[AMONG]) if share > DENSE and some else 0.0
                for share, some in zip(density, bounds, strict=True)
            ]
        )
    return found


def _of_wanted(
    floors: Mapping[int, Float[np.ndarray, " features"]], wanted: Sequence[Place]
) -> dict[int, Float[np.ndarray, " features"]]:
    """Thresholds that no feature passes but those wanted: memory is for these alone."""
    found = {layer: np.full(len(one), np.inf) for layer, one in floors.items()}
    for layer, feature in wanted:
        found[layer][feature] = floors[layer][feature]
    return found


def _sides(
    known: tuple[Store, Mapping[int, Float[np.ndarray, " features"]]],
    model: ReplacementModel,
    texts: Texts,
    names: Names,
    settings: Settings,
    say: Progress,
) -> Sides:
    store, floors = known

    def side(some: Iterable[Document], share: int, what: str) -> Side:
        part = replace(settings, max_tokens=max(1, (settings.max_tokens or 4) // share))
        seen = observe(model, some, part, floors, lambda done, total: say(done, total, what))
        return Side(seen, names)

    outside = texts.elsewhere()
    best = Unembedded.of(model)
    return Sides(
        pick=side(texts.part(0), 2, "Reading the text to choose on"),
        check=side(texts.part(1), 4, "Reading the text to mend on"),
        held_out=side(texts.part(HELD_OUT), 4, "Reading the text held out"),
        outside=side(outside, 4, "Reading text from elsewhere") if outside else None,
        promoted={layer: best.extremes(layer, PROMOTED)[1].cpu().numpy() for layer in store.layers},
    )


def _all(store: Store) -> list[Place]:
    return [
        (layer, feature)
        for layer in store.layers
        for feature in range(store.features(layer).num_rows)
    ]


def _check(store: Store, layer: int, feature: int) -> None:
    if not 0 <= feature < store.features(layer).num_rows:
        raise TraceError(f"{store.path}: there is no feature {layer}/{feature}")


def _examples(store: Store, layers: Iterable[int]) -> Iterator[tuple[int, dict[int, Any]]]:
    """The strongest example of every feature, layer by layer."""
    for layer in sorted(layers):
        yield layer, store.strongest(layer)


def _about(store: Store, sides: Sides, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the labels were made on."""
    said = {
        name: {"tokens": side.observed.tokens, "sha256": side.observed.fingerprint}
        for name in ("pick", "check", "held_out", "outside")
        if (side := getattr(sides, name)) is not None
    }
    given = {name: sorted(words) for name, words in classes.items()}
    return {"dictionary_hash": store.about["dictionary_hash"], "texts": said, "classes": given}


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
