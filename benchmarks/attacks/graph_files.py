"""Graphs: bytes, values, metadata, zips, hostile text, DAGs of random numbers."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.compute

from benchmarks.attacks.trial import Attack, command, mutated_bytes, mutated_json, require
from graphs import AttributionGraph
from graphs.exchange import arrow
from graphs.exchange.tables import WRITERS
from tests.graph_samples import random_graph

FEATURES = 24


def sample(seed: int = 0) -> AttributionGraph:
    """A graph with a group and every kind of node."""
    graph = random_graph(seed, features=FEATURES, layers=2, tokens=["<bos>", "The", " capital"])
    feature = graph.nodes.filter(pa.compute.equal(graph.nodes["kind"], "feature"))["id"][0].as_py()
    return graph.group("a city", [feature])


def same(one: AttributionGraph, other: AttributionGraph) -> bool:
    """Whether two graphs say the same."""
    return (
        one.nodes.equals(other.nodes)
        and one.edges.equals(other.edges)
        and one.metadata == other.metadata
        and (one.effect != other.effect).nnz == 0
    )


def use(graph: AttributionGraph) -> None:
    """Do with a graph what people do; fail where the result is none."""
    scores = graph.scores
    for name in ("replacement", "completeness", "leak", "uncovered"):
        value = getattr(scores, name)
        require(math.isnan(value) or -1e-6 <= value <= 1 + 1e-6, f"{name} is {value}")
    small = graph.prune(0.9, 0.9)
    require(small.nodes.num_rows <= graph.nodes.num_rows, "pruning adds nodes")
    require(nx.is_directed_acyclic_graph(small.to_networkx()), "the graph has a cycle")
    for path in small.paths(3):
        small.describe(path)
    small.to_dot()
    for write in WRITERS.values():
        write(small.nodes, small.edges, small.metadata)


def spoiled_bytes(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Files of a graph, as a disk or a network spoils them: found, or the graph is the same."""
    graph = sample()
    graph.save(place / "g")
    graph.save(place / "g.zip")
    whole = {
        path: path.read_bytes() for path in [*sorted((place / "g").iterdir()), place / "g.zip"]
    }
    tables = [path for path in whole if path.suffix != ".json"]

    def attack() -> None:
        path = tables[int(rng.integers(len(tables)))]
        path.write_bytes(mutated_bytes(rng, whole[path]))
        try:
            found = AttributionGraph.load(place / "g" if path.parent.name == "g" else path)
            require(same(found, graph), f"a change of {path.name} was accepted")
        finally:
            path.write_bytes(whole[path])

    while True:
        yield attack


def spoiled_column(rng: np.random.Generator, table: pa.Table) -> pa.Table:
    """A table with a cell, a type, a name, or the order of something changed."""
    at = int(rng.integers(table.num_columns))
    name, column = table.column_names[at], table.column(at)
    values, kind = column.to_pylist(), int(rng.integers(8))
    row = int(rng.integers(max(1, len(values))))
    if kind <= 2 and values:
        extremes = (
            None,
            0,
            -1,
            1e300,
            -1e300,
            float("nan"),
            float("inf"),
            2**31 - 1,
            2**40,
            1e-300,
        )
        texts = (None, "", "x", "a__b", "\u202e", "\x00", "E_1_1", "feature", "logit", "mlp_out.9")
        pool = texts if pa.types.is_string(column.type) else extremes
        values[row] = pool[int(rng.integers(len(pool)))]
        try:
            return table.set_column(at, name, pa.array(values, column.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return table.set_column(at, name, pa.nulls(len(values), column.type))
    if kind == 3:
        other = [pa.string(), pa.float32(), pa.int64(), pa.bool_(), pa.large_string()]
        try:
            return table.set_column(at, name, column.cast(other[int(rng.integers(5))]))
        except pa.ArrowException:
            return table.set_column(at, name, pa.nulls(len(values)))
    if kind == 4:
        return table.take(rng.permutation(table.num_rows))
    if kind == 5:
        return table.remove_column(at)
    if kind == 6:
        extra: list[Any] = [
            [b"x"] * len(values),
            [[1]] * len(values),
            [{"a": 1}] * len(values),
            [True] * len(values),
            values,
        ]
        return table.append_column(f"{name}2", pa.array(extra[int(rng.integers(len(extra)))]))
    return table.rename_columns(
        [f"{n}x" if i == at else n for i, n in enumerate(table.column_names)]
    )


def strange_values(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Whole files of a graph that is none: refused, or everything can be done with it."""
    graph = sample()
    path = place / "g"

    def attack() -> None:
        nodes, edges = graph.nodes, graph.edges
        for _ in range(int(rng.integers(1, 3))):
            if rng.random() < 0.7:
                nodes = spoiled_column(rng, nodes)
            else:
                edges = spoiled_column(rng, edges)
        arrow.write(path, nodes, edges, graph.metadata)
        use(AttributionGraph.load(path))

    while True:
        yield attack


def rich_metadata() -> dict[str, Any]:
    """Everything that metadata may hold."""
    counts = {"kept_nodes": 3, "kept_edges": 4, "total_nodes": 50, "total_edges": 90}
    spread = {"median": 0.5, "lower": 0.25, "upper": 0.75}
    part = dict.fromkeys(("circuit", "empty", "rest", "minimal", "ablated"), 0.5)
    return sample().metadata | {
        "settings": {
            "max_features": None,
            "targets": None,
            "skip_positions": 1,
            "dtype": "float32",
        },
        "versions": {"torch": "2", "products": {}},
        "pruned": {"nodes": 0.8, "edges": 0.98, **counts, "uncovered": 0.1},
        "labels": {"0/11": {"f1": 0.7, "source": "predicate", "polysemantic": False}},
        "skip_alone": {"replacement": 0.1, "completeness": None},
        "token_ids": [1, 2, 3],
        "position": 2,
        "vocabulary": 100,
        "floored_share": 0.01,
        "model": "m",
        "model_revision": "",
        "transcoders": "t",
        "transcoders_hash": "0" * 64,
        "validation": {
            "features": 3,
            "target": "x",
            "spearman": dict.fromkeys(
                ("influence", "top_half", "activation", "direct", "feature_to_feature"), 0.5
            )
            | {"feature_targets": 2, "feature_spread": spread},
            "responses": {"nothing": {"1": {"cosine": 0.9, "cosine_lower": 0.8}}},
            "first_order": {},
            "faithfulness": {"features": 3, "errors": 1, "clean": 2.0, "held": {"nothing": part}},
            "verdict": {
                "text": "It does.",
                "short": "keeps 90 %",
                "nodes": 0.8,
                "edges": 0.98,
                "evidence": [{"kind": "necessity", "value": 0.5, "control": None, "says": "x"}],
            },
        },
    }


def strange_metadata(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Metadata of the wrong shape: refused, or everything can be done with the graph."""
    graph, base = sample(), rich_metadata()
    path = place / "g"

    def attack() -> None:
        said = base
        for _ in range(int(rng.integers(1, 3))):
            said = mutated_json(rng, said)
        if not isinstance(said, dict):
            said = {"settings": said}
        arrow.write(path, graph.nodes, graph.edges, said)
        use(AttributionGraph.load(path))
        if rng.random() < 0.3:
            command("show", str(path))

    while True:
        yield attack


NAMES = (
    *("../nodes.arrow", "/etc/x", "nodes.arrow", "a/nodes.arrow", "extra.txt", "nodes.arrow/"),
    *("view.json", "groups.json", "heads.arrow"),
)
"""Of members that no graph has, or has once."""


def write_zip(rng: np.random.Generator, path: Path, members: dict[str, bytes]) -> None:
    """A zip of a graph's members, less one, some empty or links, and others beside them."""
    held = dict(members)
    if rng.random() < 0.3:
        held.pop(list(held)[int(rng.integers(len(held)))])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            info = zipfile.ZipInfo(name)
            if rng.random() < 0.2:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, content if rng.random() < 0.8 else b"")
        for _ in range(int(rng.integers(0, 3))):
            bomb = bytes(80_000_000) if rng.random() < 0.02 else rng.bytes(40)
            archive.writestr(NAMES[int(rng.integers(len(NAMES)))], bomb)


def strange_zips(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Zips that lead outside, hold more than they say, or twice the same; also overwritten."""
    graph = sample()
    graph.save(place / "good.zip")
    with zipfile.ZipFile(place / "good.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    whole = (place / "good.zip").read_bytes()
    path = place / "z.zip"

    def attack() -> None:
        if rng.random() < 0.5:
            path.write_bytes(mutated_bytes(rng, whole))
        else:
            write_zip(rng, path, members)
        if rng.random() < 0.5:
            graph.save(path)
        found = AttributionGraph.load(path)
        require(same(found, graph), "a zip of something else was accepted")

    while True:
        yield attack


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg>",
    "\x1b]0;x\x07",
    "\x9b2J",
    "\u202egnp.exe",
    "&lt;",
    "\\N\\G\\l",
    '" URL="javascript:1',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(1)",
    "-2+3",
    "\t=1",
    "\r\n=1",
    "%0A",
    "\u2028",
    "\ufeff",
    "\x00",
    "\x7f",
    "<![CDATA[",
    "]]>",
    "{{7*7}}",
    "a" * 20_000,
    "\U0001f3f4\U000e0067",
    "[b]bold[/b]",
    "::",
    "->",
    "e\u0301" * 300,
)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def hostile_text(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Hostile text in every field: inert in pictures, tables, pages and on the terminal."""
    graph = sample()
    path = place / "g"

    def text() -> str:
        parts = rng.choice(len(HOSTILE), int(rng.integers(1, 4)))
        return "".join(HOSTILE[int(at)] for at in parts)

    def spoiled() -> AttributionGraph:
        nodes = graph.nodes
        for name in ("label", "text"):
            column = [
                text() if value and rng.random() < 0.4 else value
                for value in nodes[name].to_pylist()
            ]
            nodes = nodes.set_column(
                nodes.column_names.index(name), name, pa.array(column, pa.string())
            )
        tokens = [text() for _ in graph.metadata["tokens"]]
        metadata = graph.metadata | {"prompt": text(), "model": text(), "tokens": tokens}
        return AttributionGraph(nodes=nodes, effect=graph.effect, metadata=metadata)

    def attack() -> None:
        found = spoiled()
        dot = found.to_dot()
        require(not CONTROLS.search(dot), "a control in DOT")
        require(max(map(len, dot.split('"'))) < 16_000, "a string that Graphviz does not read")
        xml = WRITERS[".graphml"](found.nodes, found.edges, found.metadata)
        ET.fromstring(xml.decode())
        csv = WRITERS[".csv"](found.nodes, found.edges, found.metadata).decode()
        require(not re.search(r'(^|,)"\s*[=+@|%-]', csv, re.M), "a formula in a cell")
        page = WRITERS[".html"](found.nodes, found.edges, found.metadata)
        require(b"<script>alert(1)" not in page, "a script in a page")
        json.loads(WRITERS[".json"](found.nodes, found.edges, found.metadata))
        if rng.random() < 0.3:
            found.save(path)
            said = command("show", str(path))
            require(not CONTROLS.search(said), "a control on the terminal")
        if rng.random() < 0.05 and shutil.which("dot"):
            found.render(place / "g.svg")
            ET.parse(place / "g.svg")

    while True:
        yield attack


def random_dags(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Graphs of random numbers: networkx, disk, JSON and pruning leave them what they are."""
    path = place / "g.zip"

    def attack() -> None:
        tokens = [f" w{at}" for at in range(int(rng.integers(1, 5)))]
        graph = random_graph(
            int(rng.integers(2**31)),
            tokens=tokens,
            layers=int(rng.integers(1, 4)),
            features=int(rng.integers(0, 20)),
        )
        graph.save(path)
        require(same(AttributionGraph.load(path), graph), "saving changes it")
        back = AttributionGraph.from_networkx(graph.to_networkx())
        require(back.nodes.num_rows == graph.nodes.num_rows, "networkx changes it")
        use(graph)

    while True:
        yield attack
