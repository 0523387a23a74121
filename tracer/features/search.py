"""Find features: by what they fire on, promote, are called or resemble, or by their examples' text.

What is searched is read once and kept as arrays of numbers: a query looks its words up among the
distinct ones and compares whole columns (tests/test_tracer_features_search.py times it).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from pyarrow import compute, parquet

from tracer.errors import TraceError
from tracer.features.tables import EXAMPLES, FEATURES, WINDOWS, layer_file

WAYS = ("token", "promoted", "label", "text", "similar")
"""What a query can be matched with."""


@dataclass(frozen=True)
class Hit:
    """A feature that was found."""

    layer: int
    feature: int
    score: float
    """`token`: share of its activation on that token; `promoted`: deviations above all features';
    `text`: share of its examples; `similar`: cosine; `label`: 1."""
    matched: str
    """The token, the label, or what the feature is alike to."""


@dataclass(frozen=True, eq=False)
class Words:
    """A column of lists of words with weights, all lists one after the other."""

    distinct: list[str]
    code: Int[np.ndarray, " entries"]
    row: Int[np.ndarray, " entries"]
    weight: Float[np.ndarray, " entries"]

    @classmethod
    def of(cls, lists: pa.ListArray, weights: pa.ListArray) -> "Words":
        """From two columns of lists of equal lengths."""
        words = compute.list_flatten(lists)
        if not pa.types.is_dictionary(words.type):
            words = words.dictionary_encode()
        return cls(
            words.dictionary.to_pylist(),
            words.indices.to_numpy(),
            compute.list_parent_indices(lists).to_numpy(),
            compute.list_flatten(weights).to_numpy(),
        )

    @cached_property
    def codes_of(self) -> dict[str, list[int]]:
        """Codes of all spellings that count as one word."""
        found: dict[str, list[int]] = {}
        for code, word in enumerate(self.distinct):
            found.setdefault(plain(word), []).append(code)
        return found

    def find(self, query: str) -> Int[np.ndarray, " entries"]:
        """Entries that hold the word."""
        codes = self.codes_of.get(plain(query), [])
        return np.flatnonzero(np.isin(self.code, codes)) if codes else np.zeros(0, dtype=np.int64)


def plain(word: str) -> str:
    """A token as it is compared: without white space around it, in small letters."""
    return word.strip().casefold()


class Index:
    """What is searched of one store; each part is read when it is first asked for."""

    def __init__(
        self,
        path: Path,
        layers: Sequence[int],
        labels: Mapping[tuple[int, int], str | None] | None = None,
    ) -> None:
        """Of a store's folder, features of these layers; `labels` replace those of the table."""
        self.path, self.layers, self.labels = path, tuple(layers), labels or {}

    def search(self, query: str, by: str, limit: int) -> list[Hit]:
        """The features that match best, by score and then by place.

        Args:
            query: a token, part of a label, part of an example's text, or layer/feature.
            by: one of WAYS.
            limit: at most so many.

        Raises:
            TraceError: no such way, or a query that does not fit it.
        """
        ways = {
            "token": lambda: self._by_word("fires_on", query),
            "promoted": lambda: self._by_word("promoted", query),
            "label": lambda: self._by_label(query),
            "text": lambda: self._by_text(query),
            "similar": lambda: self._similar(query),
        }
        if by not in ways:
            raise TraceError(f"search by {by!r} is not known, expected one of {', '.join(WAYS)}")
        if not query.strip():
            raise TraceError("the query is empty; give a word to look for")
        row, score, matched = ways[by]()
        best = np.lexsort((row, -score))[:limit]
        places = zip(*self._places(row[best]), strict=True)
        found = zip(places, score[best].tolist(), (matched(one) for one in best), strict=True)
        return [Hit(layer, feature, value, text) for (layer, feature), value, text in found]

    def _by_word(self, column: str, query: str) -> Any:
        words = self._words(column)
        at = words.find(query)
        # A token may be spelled in several ways: a feature counts once, with its best one.
        best = at[np.lexsort((-words.weight[at], words.row[at]))]
        best = best[np.unique(words.row[best], return_index=True)[1]]
        return words.row[best], words.weight[best], lambda i: words.distinct[words.code[best[i]]]

    def _by_label(self, query: str) -> Any:
        labels, small = self._labels
        row = np.flatnonzero(_contains(small, query))
        return row, np.ones(len(row)), lambda i: labels[int(row[i])].as_py()

    def _by_text(self, query: str) -> Any:
        numbers, texts = self._texts
        hit = numbers[_contains(texts, query)]
        row, window = self._examples
        matching = np.bincount(row[np.isin(window, hit)], minlength=len(self))
        every = np.bincount(row, minlength=len(self))
        found = np.flatnonzero(matching)
        return found, matching[found] / every[found], lambda i: query

    def _similar(self, query: str) -> Any:
        layer, _, feature = query.strip().partition("/")
        if not (layer.isdecimal() and feature.isdecimal()):
            raise TraceError(f"{query!r} is no feature; expected layer/feature, as in 2/311")
        if int(layer) not in self.layers or int(feature) >= self._sizes[int(layer)]:
            raise TraceError(f"{self.path}: there is no feature {query}")
        file = layer_file(self.path, FEATURES, int(layer))
        wanted = compute.field("feature") == int(feature)
        [near] = _read(file, ["similar"], filters=wanted)["similar"].to_pylist()
        row = np.array([self._starts[one["layer"]] + one["feature"] for one in near], dtype=int)
        return row, np.array([one["weight"] for one in near]), lambda i: query

    def __len__(self) -> int:
        """Features of all layers."""
        return sum(self._sizes.values())

    @cached_property
    def _sizes(self) -> dict[int, int]:
        files = ((layer, layer_file(self.path, FEATURES, layer)) for layer in self.layers)
        return {layer: parquet.read_metadata(file).num_rows for layer, file in files}

    @cached_property
    def _starts(self) -> dict[int, int]:
        begins = np.cumsum([0, *self._sizes.values()]).tolist()
        return dict(zip(self._sizes, begins, strict=False))

    def _places(self, rows: Int[np.ndarray, " hits"]) -> tuple[list[int], list[int]]:
        begins = np.array([*self._starts.values()])
        at = np.searchsorted(begins, rows, side="right") - 1
        return np.array(self.layers)[at].tolist(), (rows - begins[at]).tolist()

    @cached_property
    def _held(self) -> dict[str, Words]:
        return {}

    def _words(self, column: str) -> Words:
        if column not in self._held:
            weight = {"fires_on": "fires_on_share", "promoted": "promoted_score"}[column]
            self._held[column] = Words.of(self._column(column), self._column(weight))
        return self._held[column]

    def _column(self, name: str) -> pa.Array:
        """One column of all layers' features, one after the other."""
        words = [f"{name}.list.element"] if name in ("fires_on", "promoted") else []
        parts = [
            _read(layer_file(self.path, FEATURES, layer), [name], read_dictionary=words)[name]
            for layer in self.layers
        ]
        whole = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
        return whole.unify_dictionaries().combine_chunks() if words else whole.combine_chunks()

    @cached_property
    def _labels(self) -> tuple[pa.Array, pa.Array]:
        """Labels, and the same in small letters: to fold case anew takes longest."""
        labels = self._column("label")
        if self.labels:
            texts = labels.to_pylist()
            for (layer, feature), text in self.labels.items():
                texts[self._starts[layer] + feature] = text
            labels = pa.array(texts, pa.string())
        return labels, compute.utf8_lower(labels)

    @cached_property
    def _texts(self) -> tuple[Int[np.ndarray, " windows"], pa.Array]:
        table = _read(self.path / WINDOWS, ["window", "texts"])
        texts = compute.utf8_lower(compute.binary_join(table["texts"], ""))
        return table["window"].to_numpy(), texts.combine_chunks()

    @cached_property
    def _examples(self) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
        """Row among all features, and window, of every example."""
        tables = [
            (
                self._starts[layer],
                _read(layer_file(self.path, EXAMPLES, layer), ["feature", "window"]),
            )
            for layer in self.layers
        ]
        rows = [start + table["feature"].to_numpy() for start, table in tables]
        windows = [table["window"].to_numpy() for _, table in tables]
        return np.concatenate(rows), np.concatenate(windows)


def _contains(small: pa.Array, query: str) -> Bool[np.ndarray, " texts"]:
    """Which of some texts in small letters hold a query in any."""
    found = compute.match_substring(small, compute.utf8_lower(pa.scalar(query)).as_py())
    return np.asarray(found.fill_null(False).to_numpy(zero_copy_only=False))


def _read(file: Path, columns: Sequence[str], **options: Any) -> pa.Table:
    try:
        return parquet.read_table(file, columns=list(columns), partitioning=None, **options)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise TraceError(f"{file}: cannot be read ({reason}); build the store anew") from error
