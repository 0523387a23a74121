"""What stands beside a graph: groups, a saved view, tables about attention."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.attacks.graph_files import same, sample
from benchmarks.attacks.trial import Attack, mutated_bytes, mutated_json, require
from graphs import AttributionGraph
from graphs.viewer.beside import read_beside


def spoiled_beside(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Files beside the tables: refused, or the graph is the one saved and its groups its own.

    Groups and views are text that people may edit: what is valid in them is accepted. A table
    about attention is held to its digest.
    """
    graph = sample()
    name = f"{graph.nodes['id'][0].as_py()}__{graph.nodes['id'][-1].as_py()}"
    heads = {
        "edge": [name],
        "layer": pa.array([0], pa.int32()),
        "head": pa.array([1], pa.int32()),
        "query": pa.array([None], pa.int32()),
        "key": pa.array([None], pa.int32()),
        "loading": [0.5],
    }
    graph = graph.with_tables({"heads": pa.table(heads)})
    path = place / "g"
    graph.save(path, pins=[graph.nodes["id"][1].as_py()])
    whole = {one: one.read_bytes() for one in sorted(path.iterdir())}
    beside = [one for one in whole if one.name not in ("nodes.arrow", "edges.arrow")]

    def attack() -> None:
        file = beside[int(rng.integers(len(beside)))]
        if file.suffix == ".json" and rng.random() < 0.7:
            said = mutated_json(rng, json.loads(whole[file]))
            file.write_text(json.dumps(said), encoding="utf-8")
        else:
            file.write_bytes(mutated_bytes(rng, whole[file]))
        try:
            read_beside(path)
            found = AttributionGraph.load(path)
            require(same(found, graph), "the graph is another one")
            require(found.tables["heads"].equals(graph.tables["heads"]), "a table was accepted")
            ids = set(found.nodes["id"].to_pylist())
            for group in found.groups:
                require(set(group.members) <= ids, "a group of nodes that are none")
            found.packed()
        finally:
            file.write_bytes(whole[file])

    while True:
        yield attack
