"""A dataset of graphs, read."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from graphs.collections import columns, shards
from graphs.collections.columns import ABOUT, EDGES, NAME, NODES, PROMPTS, STEERING, TRACED, VERSION
from graphs.collections.rows import Rows, graph_of
from graphs.graph import AttributionGraph
from graphs.schema import GraphError


@dataclass(frozen=True, eq=False)
class GraphDataset:
    """Graphs of many prompts, all made of one model with the same settings.

    Tables are read when they are asked for. While more prompts are being traced, what is there is
    whole: prompts without a row are not done yet.
    """

    path: Path
    about: dict[str, Any] = field(repr=False)
    """settings.json: model, dictionary, settings, versions, prompts in all and a shard, the
    caller's own columns."""

    @classmethod
    def load(cls, path: str | Path) -> "GraphDataset":
        """Open a dataset.

        Args:
            path: its folder.

        Returns:
            The dataset; its tables stay on disk until they are needed.

        Raises:
            GraphError: no dataset is there, or one of a later version.
        """
        folder = Path(path)
        return cls(folder, read_about(folder))

    @property
    def prompts(self) -> pads.Dataset:
        """One row a prompt that is done, traced or failed.

        Returns:
            Columns as `graphs.collections.columns.PROMPT_COLUMNS`, then the caller's own.
        """
        return shards.table(self.path, PROMPTS, self._schemas[PROMPTS])

    @property
    def nodes(self) -> pads.Dataset:
        """One row a node of every graph.

        Returns:
            Its prompt's number, then columns as in `AttributionGraph.nodes`.
        """
        return shards.table(self.path, NODES, self._schemas[NODES])

    @property
    def edges(self) -> pads.Dataset:
        """One row an edge of every graph.

        Returns:
            prompt, source and target (ids of nodes of that prompt), weight in units of the target,
            influence in units of the targets' weights, share (signed, of the target's input).
        """
        return shards.table(self.path, EDGES, self._schemas[EDGES])

    @property
    def is_complete(self) -> bool:
        """Whether every prompt is done."""
        return len(self) == self.about["prompts"]

    def __len__(self) -> int:
        """How many prompts are done."""
        return int(self.prompts.count_rows())

    def graph(self, prompt: int) -> AttributionGraph:
        """The graph of one prompt.

        Args:
            prompt: its number, as in the column `prompt`.

        Returns:
            The graph that was written, equal in every table and in its metadata.

        Raises:
            GraphError: there is no such prompt, it failed, is not done yet, or its rows are torn.
        """
        if not 0 <= prompt < self.about["prompts"]:
            raise GraphError(
                f"{self.path}: prompt {prompt} is not in 0..{self.about['prompts'] - 1}"
            )
        shard = prompt // self.about["shard"]
        rows = shards.read(self.path, shard, self._schemas, prompt)
        if rows is None or not rows.prompts.num_rows:
            raise GraphError(f"{self.path}: prompt {prompt} is not traced yet; run the trace again")
        if rows.prompts["status"][0].as_py() != TRACED:
            raise GraphError(
                f"{self.path}: prompt {prompt} failed: {rows.prompts['reason'][0].as_py()}"
            )
        return self._graph(rows, prompt)

    def graphs(
        self, prompts: Sequence[int] | None = None
    ) -> Iterator[tuple[int, AttributionGraph]]:
        """Graphs one after the other, a shard in memory at a time.

        Args:
            prompts: their numbers; None: all that were traced.

        Returns:
            Numbers and graphs, in the order of the numbers; those that failed or are not done are
            left out.
        """
        wanted = None if prompts is None else set(prompts)
        for shard in shards.finished(self.path):
            first = shard * self.about["shard"]
            inside = range(first, first + self.about["shard"])
            if wanted is not None and wanted.isdisjoint(inside):
                continue
            rows = shards.read(self.path, shard, self._schemas)
            assert rows is not None
            traced = np.array(rows.prompts["status"].to_pylist()) == TRACED
            for number in rows.prompts["prompt"].to_numpy()[traced].tolist():
                if wanted is None or number in wanted:
                    yield number, self._graph(_only(rows, number), number)

    def _graph(self, rows: Rows, prompt: int) -> AttributionGraph:
        try:
            return graph_of(rows)
        except GraphError as error:
            raise GraphError(f"{self.path}: prompt {prompt}: {error}") from error

    @property
    def _schemas(self) -> dict[str, pa.Schema]:
        return schemas(self.about)


def schemas(about: dict[str, Any]) -> dict[str, pa.Schema]:
    """What stands in every part of a dataset.

    Returns:
        Name of the part -> its columns.
    """
    own = {name: pa.type_for_alias(kind) for name, kind in about["columns"].items()}
    weight = pa.type_for_alias(about["weight"])
    parts = {
        PROMPTS: {**columns.PROMPT_COLUMNS, **own},
        NODES: columns.NODE_COLUMNS,
        EDGES: columns.edge_columns(weight),
        STEERING: columns.STEERING_COLUMNS,
    }
    return {name: pa.schema(list(part.items())) for name, part in parts.items()}


def read_about(folder: Path) -> dict[str, Any]:
    """What settings.json says.

    Returns:
        Model, dictionary, settings, versions, `prompts` in all and `shard`, prompts a shard.

    Raises:
        GraphError: no dataset is there, or one of a later version.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GraphError(
            f"{folder} is no dataset of graphs: expected a folder with {ABOUT}, as "
            "tracer trace --prompts FILE -o FOLDER writes"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise GraphError(f"{folder / ABOUT} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != NAME:
        raise GraphError(f"{folder} is no dataset of graphs: {ABOUT} does not say {NAME!r}")
    if about.get("version") != VERSION:
        raise GraphError(
            f"{folder} is a dataset of version {about.get('version')!r}, expected {VERSION}: read "
            "it with the release of tracer that wrote it"
        )
    if wrong := _misdescribed(about):
        raise GraphError(f"{folder / ABOUT}: {wrong}; trace it again")
    return about


def _misdescribed(about: dict[str, Any]) -> str | None:
    for name, least in (("prompts", 0), ("shard", 1)):
        if type(about.get(name)) is not int or about[name] < least:
            return f"{name} is {about.get(name)!r:.40}, expected a whole number from {least} up"
    if about.get("weight") not in ("float", "double"):
        return f"weight is {about.get('weight')!r:.40}, expected float or double"
    own = about.get("columns")
    if not isinstance(own, dict) or not set(own.values()) <= set(OWN_TYPES):
        return f"columns is {own!r:.80}, expected names with one of {', '.join(OWN_TYPES)}"
    return None


OWN_TYPES = ("string", "int64", "double", "bool")
"""What the caller's own columns may hold."""


def _only(rows: Rows, number: int) -> Rows:
    """Rows of one prompt, of tables sorted by prompt."""
    parts = []
    for table in (rows.prompts, rows.nodes, rows.edges, rows.steering):
        prompt = table["prompt"].to_numpy()
        begin, end = np.searchsorted(prompt, [number, number + 1])
        parts.append(table.slice(begin, end - begin))
    return Rows(*parts)
