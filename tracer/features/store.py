"""A feature store, read: what is known of every feature of a dictionary."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import compute, parquet

from graphs import words
from tracer.errors import TraceError
from tracer.features import described
from tracer.features.feature import Example, Feature, Place
from tracer.features.labels import own
from tracer.features.labels.named import Named, named
from tracer.features.labels.table import Labels
from tracer.features.search import Hit, Index
from tracer.features.tables import (
    ABOUT,
    EXAMPLES,
    FEATURES,
    NAME,
    ROW_GROUP,
    VERSION,
    WINDOWS,
    layer_file,
)

if TYPE_CHECKING:
    from replacement_models import ReplacementModel
    from replacement_models.text.documents import Corpus
    from tracer.features.build import Progress
    from tracer.features.labels.endpoint import Endpoint
    from tracer.lenses.affine import AffineLens

NAMED = 3
"""Promoted tokens that stand for a feature without a label."""


@dataclass(frozen=True)
class FeatureStore:
    """Statistics, examples and neighbours of a dictionary's features over a corpus.

    Tables are read when they are first asked for, and those of features then stay in memory.
    """

    path: Path
    about: Mapping[str, Any] = field(repr=False)
    """store.json: model, dictionary, corpus, settings, tokens counted."""

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStore":
        """Open a store.

        Args:
            path: its folder.

        Returns:
            The store; its tables stay on disk until they are needed.

        Raises:
            TraceError: no store is there, or one of a later version.
        """
        folder = Path(path)
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise TraceError(_missing(folder)) from error
        except (OSError, ValueError, RecursionError) as error:
            raise TraceError(
                f"{folder / ABOUT}: cannot be read ({error}); build it anew"
            ) from error
        if not isinstance(about, dict) or about.get("format") != NAME:
            raise TraceError(f"{folder}: is no feature store ({ABOUT} does not say {NAME!r})")
        if about.get("version") != VERSION:
            raise TraceError(
                f"{folder}: is a feature store of version {about.get('version')}, expected "
                f"{VERSION}; build it anew"
            )
        if wrong := described.misdescribed(about):
            raise TraceError(f"{folder / ABOUT}: {wrong}; build it anew")
        return cls(folder, about)

    @classmethod
    def build(  # noqa: PLR0913  keyword arguments are the public interface
        cls,
        model: "ReplacementModel",
        corpus: "Corpus",
        path: str | Path,
        *,
        context: int | None = None,
        window: int | None = None,
        batch: int = 32,
        examples: int = 10,
        per_decile: int = 2,
        tokens: int = 10,
        neighbours: int = 8,
        sampled_tokens: int = 8192,
        shard: int = 64,
        skip_positions: int = 1,
        alone: bool = False,
        max_tokens: int | None = None,
        field: str = "text",
        lines: bool = False,
        lens: "str | Path | AffineLens | None" = None,
        progress: "Progress | None" = None,
    ) -> "FeatureStore":
        """Run a model over a corpus once and write down what its features do.

        Interrupted, even by kill -9, it goes on from its last commit when it is called again, and
        ends with the same bytes (tests/test_tracer_features_build.py).

        Args:
            model: the model, with a dictionary or its own neurons.
            corpus: a file or folder of text, JSONL or Parquet, `hf:owner/name` where the package
                datasets is installed, or any iterable of texts or lists of token ids.
            path: folder to write, which must not exist.
            context: tokens a row; None: 256, or what the model reads if that is less.
            window: tokens that an example shows; None: 64, or the context.
            batch: rows a forward pass.
            examples: windows kept where a feature is strongest.
            per_decile: examples of every tenth of its activations.
            tokens: promoted ones, suppressed ones, and those it fires on.
            neighbours: features it reads from, writes to, resembles and fires with; 0 none.
            sampled_tokens: how many tokens are looked at for what fires together.
            shard: batches between two commits.
            skip_positions: first positions of a row that do not count.
            alone: every document begins a row, as a prompt does, instead of following another.
            max_tokens: read at most so many; None is all.
            field: key of JSONL, column of Parquet, that holds the text.
            lines: every line of plain text is a document of its own.
            lens: a Jacobian lens of this model, or its file (`fit_lens`): the store then names also
                the tokens that a feature promotes through it.
            progress: called before every batch with rows done, rows in all, and what is done.

        Returns:
            The store, from its folder.

        Raises:
            TraceError: something stands at `path`, the corpus cannot be read, or a build that was
                begun there was begun with another model, corpus or setting.
        """
        from tracer.features.build import build, default_settings
        from tracer.lenses.affine import AffineLens

        settings = default_settings(
            model,
            context=context,
            window=window,
            batch=batch,
            examples=examples,
            per_decile=per_decile,
            tokens=tokens,
            neighbours=neighbours,
            sampled_tokens=sampled_tokens,
            shard=shard,
            skip_positions=skip_positions,
            alone=alone,
            max_tokens=max_tokens,
        )
        taken = AffineLens.load(lens) if isinstance(lens, str | Path) else lens
        build(
            model,
            corpus,
            Path(path),
            settings,
            field=field,
            lines=lines,
            lens=taken,
            progress=progress,
        )
        return cls.load(path)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have features."""
        return tuple(int(layer) for layer in self.about["features"])

    def check(self, model: "ReplacementModel") -> None:
        """Refuse a model with another dictionary.

        Raises:
            TraceError: the content hashes differ.
        """
        from tracer.features.dictionary_hash import dictionary_hash

        got, expected = dictionary_hash(model), self.about["dictionary_hash"]
        if got != expected:
            raise TraceError(
                f"{self.path}: belongs to the dictionary {self.about['transcoders'] or 'of'} "
                f"{self.about['model']} ({expected[:12]}), got {got[:12]}; name its own, or build "
                "a store of this one"
            )

    def features(self, layer: int) -> pa.Table:
        """Every feature of one layer, in order; columns as in tables.py.

        Raises:
            TraceError: the layer has no features.
        """
        if layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise TraceError(
                f"{self.path}: layer {layer} has no features; those that have: {known}"
            )
        if layer not in self._tables:
            self._tables[layer] = _read(layer_file(self.path, FEATURES, layer))
        return self._tables[layer]

    def __getitem__(self, place: Place) -> Feature:
        """`store[layer, feature]`.

        Raises:
            TraceError: there is no such feature.
        """
        return self.several([place])[0]

    def several(self, places: Sequence[Place]) -> list[Feature]:
        """Features read together, each file of the store once.

        Returns:
            One for each (layer, feature), in their order.

        Raises:
            TraceError: there is no such feature.
        """
        for layer, feature in places:
            table = self.features(layer)
            if not 0 <= feature < table.num_rows:
                raise TraceError(
                    f"{self.path}: feature {feature} is not in layer {layer}, expected 0 to "
                    f"{table.num_rows - 1}"
                )
        rows = self._examples(places)
        texts = self._windows({row["window"] for some in rows.values() for row in some})
        return [
            Feature(*place, self._row(*place), self._shown(rows[place], texts)) for place in places
        ]

    def _row(self, layer: int, feature: int) -> dict[str, Any]:
        """A feature's row of the table, with its label and how true that is."""
        [row] = self.features(layer).slice(feature, 1).to_pylist()
        measured = self.labels.rows.get((layer, feature), {})
        return {**measured, **row, "label": self.label_of(layer, feature).label}

    @cached_property
    def labels(self) -> Labels:
        """Labels with their measured truth (labels/table.py); none before the store is labelled."""
        return Labels.read(self.path)

    @cached_property
    def own_labels(self) -> dict[Place, str]:
        """The users' own, which win.

        Raises:
            TraceError: the file in the store is another dictionary's.
        """
        return own.read_own(self.path / own.FILE, self.about["dictionary_hash"])

    def set_labels(self, labels: Mapping[Place, str | None]) -> None:
        """Keep users' own labels in the store; they win over all others.

        Args:
            labels: text by (layer, feature); None takes one away.

        Raises:
            TraceError: there is no such feature.
        """
        for layer, feature in labels:
            if not 0 <= feature < self.features(layer).num_rows:
                raise TraceError(f"{self.path}: there is no feature {layer}/{feature}")
        changed = {**self.own_labels, **labels}
        kept = {at: text for at, text in changed.items() if text is not None}
        own.write_own(self.path / own.FILE, kept, self.about["dictionary_hash"])
        self.__dict__.pop("own_labels", None)
        self.__dict__.pop("_index", None)

    def label_of(self, layer: int, feature: int) -> Named:
        """What stands for a feature in words, and how true that is (labels/named.py).

        A user's words, else a true label, else a name beside the dictionary, else its strongest
        example, else nothing.
        """
        given = self._given(layer)[feature].as_py()
        row = self.labels.rows.get((layer, feature))
        return named(self.own_labels.get((layer, feature)), given, row)

    def _given(self, layer: int) -> pa.ChunkedArray:
        """Names beside the dictionary, one a feature; nothing else of the table is read."""
        if layer in self._tables:
            return self._tables[layer]["label"]
        if layer not in self._names:
            file = layer_file(self.path, FEATURES, layer)
            self._names[layer] = _read(file, columns=["label"])["label"]
        return self._names[layer]

    def label(  # noqa: PLR0913  keyword arguments are the public interface
        self,
        model: "ReplacementModel",
        corpus: "Corpus",
        *,
        held_out: "Corpus | None" = None,
        outside: "Corpus | None" = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        features: Sequence[Place] | None = None,
        max_tokens: int = 100_000,
        field: str = "text",
        lines: bool = False,
        endpoint: "Endpoint | None" = None,
        progress: "Progress | None" = None,
    ) -> None:
        """Label features by predicates that are tested on text, and keep them in the store.

        Chosen on half of the corpus, mended on a quarter, scored on the rest (F1 of telling, token
        by token, where the feature fires), or on `held_out`.

        Args:
            model: the store's own.
            corpus: text as for `build`, packed as the store's.
            held_out: text to score on instead of a part of the corpus.
            outside: text that is not of the corpus' kind, for a second score.
            classes: words by the name of their class, for labels to name.
            features: those to label, by (layer, feature), others keeping theirs; None is all.
            max_tokens: of all texts together, but the one from elsewhere.
            field: key of JSONL, column of Parquet, that holds the text.
            lines: every line of plain text is a document of its own.
            endpoint: a language model that is asked about features without a true label.
            progress: called with the count done, the count in all, and what is done.

        Raises:
            TraceError: another dictionary's model, a corpus that cannot be read or is too small, or
                no such feature.
        """
        from tracer.features.labels.run import Texts, label_features

        whole = bool(self.about["settings"]["alone"])
        texts = Texts(corpus, held_out, outside, field, lines, whole, classes)
        label_features(
            self,
            model,
            texts,
            features=features,
            max_tokens=max_tokens,
            endpoint=endpoint,
            progress=progress,
        )
        self.__dict__.pop("labels", None)
        self.__dict__.pop("_index", None)

    def strongest(self, layer: int) -> dict[int, Example]:
        """The strongest example of every feature of a layer that has one."""
        first = (compute.field("kind") == "top") & (compute.field("rank") == 0)
        rows = _read(layer_file(self.path, EXAMPLES, layer), filters=first).to_pylist()
        shown = self._shown(rows, self._windows({row["window"] for row in rows}))
        return dict(zip((row["feature"] for row in rows), shown, strict=True))

    @property
    def count(self) -> int:
        """Features of all layers."""
        return sum(self.about["features"].values())

    def every(self, layer: int) -> Iterator[Feature]:
        """All features of one layer in order, without holding their examples all at once."""
        table = self.features(layer)
        following = self._examples_in_order(layer)
        at, rows = next(following, (-1, []))
        for feature in range(table.num_rows):
            found = rows if at == feature else []
            if at == feature:
                at, rows = next(following, (-1, []))
            row = self._row(layer, feature)
            yield Feature(layer, feature, row, self._shown(found, self._texts))

    def export(
        self,
        path: str | Path,
        to: str = "neuronpedia",
        features: Sequence[Place] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write what is known of features as files that other tools read.

        Args:
            path: folder to write, which must not exist.
            to: "neuronpedia": one JSON file a feature, named by Cantor's number of layer and
                feature; "circuit-tracer": `index.json.gz` and a binary file a layer, from which its
                front end reads ranges.
            features: only these (layer, feature), of "neuronpedia"; None: all.
            progress: called with features written and in all.

        Raises:
            TraceError: no such format or feature, or something stands at `path`.
            GraphError: the place cannot be written.
        """
        from tracer.features.export import Exported, export

        chosen = None if features is None else [self[place] for place in features]
        export(Exported(self.about, self.layers, self.every, chosen), Path(path), to, progress)

    def name(self, layer: int, feature: int) -> str:
        """A feature in a few words: its label, or the tokens it promotes most."""
        table = self.features(layer)
        label = self.label_of(layer, feature).text
        promoted = table["promoted"][feature].as_py()[:NAMED]
        return words.visible(label or ", ".join(words.token(token) for token in promoted))

    def search(self, query: str, by: str = "token", limit: int = 20) -> list[Hit]:
        """The features that match a query best.

        Args:
            query: a token (spaces around it and capitals do not matter), part of a label, part of
                the text of an example's window, or `layer/feature`.
            by: "token" that it fires on, "promoted" token, "label", "text" of its examples, or
                "similar": decoders closest to that of a feature.
            limit: at most so many.

        Returns:
            Features with a score (search.Hit), the best first.

        Raises:
            TraceError: no such way to search, or a query that does not fit it.
        """
        return self._index.search(query, by, limit)

    @cached_property
    def _index(self) -> Index:
        shown = {at: self.label_of(*at).label for at in {*self.labels.rows, *self.own_labels}}
        return Index(self.path, self.layers, shown)

    def _examples(self, places: Iterable[Place]) -> dict[Place, list[dict[str, Any]]]:
        """Rows of the examples of some features."""
        found: dict[Place, list[dict[str, Any]]] = {place: [] for place in places}
        for layer in dict.fromkeys(layer for layer, _ in found):
            wanted = [feature for at, feature in found if at == layer]
            file = layer_file(self.path, EXAMPLES, layer)
            table = _read(file, filters=compute.field("feature").isin(wanted))
            for row in table.to_pylist():
                found[layer, row["feature"]].append(row)
        return found

    def _windows(self, wanted: Collection[int]) -> dict[int, Sequence[str]]:
        """Token strings of some windows."""
        shown = _read(self.path / WINDOWS, filters=compute.field("window").isin(sorted(wanted)))
        return dict(zip(*(shown[name].to_pylist() for name in ("window", "texts")), strict=True))

    def _shown(
        self, rows: Sequence[Mapping[str, Any]], texts: Mapping[int, Sequence[str]]
    ) -> tuple[Example, ...]:
        special = {*self.about["special"]}
        try:
            return tuple(_example(row, texts[row["window"]], special) for row in rows)
        except (LookupError, TypeError, ValueError) as error:
            raise TraceError(
                f"{self.path}: examples and {WINDOWS} do not belong together; build the store anew"
            ) from error

    def _examples_in_order(self, layer: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Features of a layer that have examples, with their rows."""
        file = layer_file(self.path, EXAMPLES, layer)
        with parquet.ParquetFile(file) as table:
            batches = (batch.to_pylist() for batch in table.iter_batches(batch_size=ROW_GROUP))
            rows = chain.from_iterable(batches)
            for feature, some in groupby(rows, key=itemgetter("feature")):
                yield feature, list(some)

    @cached_property
    def _texts(self) -> "Texts":
        return Texts(_read(self.path / WINDOWS, columns=["window", "texts"]))

    @cached_property
    def _tables(self) -> dict[int, pa.Table]:
        return {}

    @cached_property
    def _names(self) -> dict[int, pa.ChunkedArray]:
        return {}


class Texts(Mapping[int, Sequence[str]]):
    """Token strings of every window that is shown, as the table holds them."""

    def __init__(self, table: pa.Table) -> None:
        """Take the table of windows."""
        self.texts = table["texts"].combine_chunks()
        self.rows = {window: row for row, window in enumerate(table["window"].to_pylist())}

    def __getitem__(self, window: int) -> Sequence[str]:
        found: list[str] = self.texts[self.rows[window]].as_py()
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _example(row: Mapping[str, Any], texts: Sequence[str], special: Collection[str]) -> Example:
    position = row["position"]
    ends = [at for at, text in enumerate(texts) if text in special]
    first = max((at + 1 for at in ends if at < position), default=0)
    last = min((at for at in ends if at > position), default=len(texts))
    return Example(
        kind=row["kind"],
        rank=row["rank"],
        texts=tuple(texts),
        activations=tuple(row["activations"][: len(texts)]),
        position=position,
        activation=row["activation"],
        document=range(first, last),
    )


def _read(file: Path, *, filters: Any = None, columns: list[str] | None = None) -> pa.Table:
    try:
        if filters is None:  # pyarrow's datasets take long to import
            with parquet.ParquetFile(file) as opened:
                table = opened.read(columns)
        else:
            table = parquet.read_table(file, partitioning=None, filters=filters, columns=columns)
        table.validate(full=True)
        return table
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise TraceError(f"{file}: cannot be read ({reason}); build the store anew") from error


def _missing(folder: Path) -> str:
    beside = folder.with_name(f"{folder.name}.building")
    if beside.is_dir():
        return f"{folder}: is not finished; build it again with what it was begun with to go on"
    return f"{folder}: holds no feature store; make one with tracer features build, or name another"
