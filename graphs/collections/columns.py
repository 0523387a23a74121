"""What stands in which table of a dataset of graphs, and in which file.

    settings.json                   what every graph of it has in common
    prompts/shard-00000.parquet     one row a prompt, traced or failed
    nodes/shard-00000.parquet       one row a node
    edges/shard-00000.parquet       one row an edge
    steering/shard-00000.parquet    one row an entry, where attention was kept
    times/shard-00000.parquet       seconds a prompt: the one part that no two runs agree in

A shard holds prompts that follow each other in the order given. Every row begins with its prompt's
number, from 0, and rows are sorted by it.
"""

from pathlib import Path

import pyarrow as pa

from graphs import schema, steering

NAME, VERSION = "tracer-graph-dataset", 1
ABOUT = "settings.json"
PROMPTS, NODES, EDGES, STEERING, TIMES = "prompts", "nodes", "edges", steering.NAME, "times"
TRACED, FAILED = "traced", "failed"
"""What the column `status` says."""
KEY = ("prompt", pa.int64())

PROMPT_COLUMNS: dict[str, pa.DataType] = {
    "prompt": KEY[1],  # its number, in the order given
    "text": pa.string(),  # as given; of token ids, their texts; null where it is no text
    "tokens": pa.list_(pa.string()),
    "token_ids": pa.list_(pa.int32()),
    "status": pa.string(),  # traced or failed
    "reason": pa.string(),  # why it failed; all that follows, but the caller's, is then null
    "targets": pa.string(),  # as asked, JSON; null: the likeliest tokens
    "answer": pa.string(),  # the target of the largest weight
    "probability": pa.float64(),  # its weight
    "active_features": pa.int64(),
    "traced_nodes": pa.int64(),
    "traced_edges": pa.int64(),
    "kept_nodes": pa.int64(),  # rows of it in `nodes`
    "kept_edges": pa.int64(),
    "replacement": pa.float64(),  # of the graph as written; what pruning took counts as error
    "completeness": pa.float64(),
    "uncovered": pa.float64(),
    "leak": pa.float64(),
    "reference_replacement": pa.float64(),  # among the nodes, as the reference counts
    "reference_completeness": pa.float64(),
    "traced_replacement": pa.float64(),  # of the graph before pruning
    "traced_completeness": pa.float64(),
    "conservation": pa.float64(),  # the worst row, in units of the effects
    "conservation_relative": pa.float64(),  # to the largest value
    "metadata": pa.string(),  # of the graph, JSON
}
"""Columns of the caller's own, such as groups, follow."""
NODE_COLUMNS: dict[str, pa.DataType] = {KEY[0]: KEY[1], **schema.COLUMNS}
"""As in a graph, in its order."""
STEERING_COLUMNS: dict[str, pa.DataType] = {KEY[0]: KEY[1], **steering.COLUMNS}
TIME_COLUMNS: dict[str, pa.DataType] = {
    KEY[0]: KEY[1],
    "seconds": pa.float64(),
    "cpu_seconds": pa.float64(),
}


def edge_columns(weight: pa.DataType) -> dict[str, pa.DataType]:
    """Columns of edges, whose ends are ids of nodes of the same prompt.

    Args:
        weight: float32 or float64, as traced.

    Returns:
        Name -> type.
    """
    return {
        KEY[0]: KEY[1],
        "source": pa.string(),
        "target": pa.string(),
        "weight": weight,
        "influence": pa.float64(),
        "share": pa.float64(),
    }


def shard_file(folder: Path, part: str, shard: int) -> Path:
    """Where a part of a shard stands."""
    return folder / part / f"shard-{shard:05d}.parquet"
