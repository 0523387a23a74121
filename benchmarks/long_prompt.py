"""A long prompt in little memory: 2,048 tokens, 16 layers, over 100,000 active features.

    python -m benchmarks.long_prompt [--rows 1024] [--edge-floor 0]

A Llama-like model of width 1,024 with random weights is traced with a cap on features. Decoder rows
stay on disk and only those of active features are read; attention patterns, which would take
4.3 GB, are made anew layer by layer. Runs in a process of its own, so that its peak is that of a
user's process: interpreter, model, encoders and all. Prints a table and writes JSON, with the
arithmetic for more rows and for the dense layout of circuit-tracer.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import random_layer
from benchmarks.resident import peak, resident
from graphs import AttributionGraph
from replacement_models import (
    JumpReLU,
    PerLayerTranscoder,
    ReLU,
    ReplacementModel,
    TranscoderLayer,
    save_transcoder,
)
from tracer.attribution.memory import Estimate

POSITIONS, LAYERS, WIDTH, HEADS, KV_HEADS, VOCABULARY = 2048, 16, 1024, 16, 4, 8192
FEATURES, ACTIVE = 8192, 4
"""Dictionary size a layer, and features that fire a token and layer."""
LIMIT = 8e9
"""Bytes of memory that the run must stay within."""


def write_case(folder: Path) -> None:
    """Write `model/`, `transcoders/` and `tokens.json`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2816,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder / "model")
    tokens = [0, *torch.randint(1, VOCABULARY, (POSITIONS - 1,)).tolist()]
    (folder / "tokens.json").write_text(json.dumps(tokens))
    silent = PerLayerTranscoder([random_layer(1, 1, WIDTH, ReLU()) for _ in range(LAYERS)])
    inputs = (
        ReplacementModel.from_huggingface(model, None, silent)
        .record(tokens, keep_patterns=False)
        .inputs
    )
    save_transcoder(
        PerLayerTranscoder([dictionary_layer(x) for x in inputs]),
        folder / "transcoders",
        "tracer",
    )


def dictionary_layer(inputs: torch.Tensor) -> TranscoderLayer:
    """A layer of which ACTIVE features fire a token, on average, on these inputs."""
    threshold = torch.empty(FEATURES)
    found = random_layer(FEATURES, 1, WIDTH, JumpReLU(threshold))
    hidden = inputs[1:] @ found.W_enc.T
    threshold.fill_(hidden.flatten().topk(ACTIVE * len(hidden)).values[-1])
    return found


def run(folder: Path, rows: int, edge_floor: float) -> dict[str, Any]:
    """Trace the case in this process."""
    started = time.perf_counter()
    model = ReplacementModel.load(folder / "model", folder / "transcoders", lazy=True)
    tokens = json.loads((folder / "tokens.json").read_text())
    found: dict[str, Any] = {
        "loaded": {"resident": resident(), "wall": time.perf_counter() - started}
    }
    done: list[tuple[int, float, float, int]] = []

    def progress(features: int, total: int) -> None:
        done.append((features, time.perf_counter(), time.process_time(), resident()))
        print(f"{features} of {total} rows, {time.perf_counter() - wall:.0f} s", flush=True)

    def start(need: Estimate) -> None:
        found["estimate"], found["recorded"] = need.device, resident()

    wall, cpu = time.perf_counter(), time.process_time()
    graph = tracer.trace(
        model,
        tokens,
        max_features=rows,
        edge_floor=edge_floor,
        on_estimate=start,
        progress=progress,
    )
    found["wall"], found["cpu"] = time.perf_counter() - wall, time.process_time() - cpu
    found["peak"] = peak()
    first, last = done[0], done[-1]
    for unit, at in (("wall", 1), ("cpu", 2)):
        found[f"{unit}_a_row"] = (last[at] - first[at]) / (last[0] - first[0])
    found["resident"] = [entry[3] for entry in done]
    return found | {"rows": rows, "edge_floor": edge_floor} | facts(model, graph)


def facts(model: ReplacementModel, graph: AttributionGraph) -> dict[str, Any]:
    """What was traced and what came out."""
    return {
        "positions": POSITIONS,
        "layers": LAYERS,
        "active_features": graph.metadata["active_features"],
        "nodes": graph.nodes.num_rows,
        "edges": graph.effect.nnz,
        "logits": sum(kind == "logit" for kind in graph.nodes["kind"].to_pylist()),
        "conservation": graph.metadata["conservation"]["relative"],
        "floored_share": graph.metadata.get("floored_share", 0.0),
        "scores": asdict(graph.scores),
        "decoder_bytes": 4 * sum(math.prod(one.decoder.shape) for one in model.transcoder.layers),
    }


def for_rows(found: dict[str, Any], rows: int) -> dict[str, float]:
    """What so many rows would cost, from the measured cost a row.

    Finished rows take 8 bytes an entry, and no row has more entries than there are columns.
    """
    columns = found["active_features"] + (found["layers"] + 1) * found["positions"]
    more = rows - found["rows"]
    return {
        "rows": rows,
        "wall": found["wall"] + more * found["wall_a_row"],
        "cpu": found["cpu"] + more * found["cpu_a_row"],
        "peak_at_most": found["peak"] + more * 8 * columns,
        "peak_at_most_with_floor_1e-4": found["peak"] + more * 8 * min(columns, 1e4),
    }


def dense_layout(found: dict[str, Any], rows: int) -> dict[str, float]:
    """Bytes that circuit-tracer's layout takes for so many features (upstream commit 4bb8c0e).

    attribution/attribute_transformerlens.py: `edge_matrix` (rows + logits, all nodes), of which
    `compute_partial_influences` makes a normalised copy under a cap; then `full_edge_matrix`, one
    row and one column a node kept, while the edge matrix stands. The forward pass is run on a batch
    of copies of the prompt and its graph kept, attention patterns included: those of a batch of one
    are counted here, its default batch is 512. All in float32.
    """
    logits, positions, layers = found["logits"], found["positions"], found["layers"]
    features = min(rows, found["active_features"])
    roots = (layers + 1) * positions
    edges = 4.0 * (features + logits) * (found["active_features"] + roots + logits)
    kept = features + roots + logits
    capped = features < found["active_features"]
    parts = {
        "edge_matrix": edges,
        "normalised_copy": edges if capped else 0.0,
        "kept_columns": 4.0 * (features + logits) * kept if capped else edges,
        "full_edge_matrix": 4.0 * kept**2,
        "patterns_of_a_batch_of_one": 4.0 * layers * HEADS * positions**2,
    }
    last = parts["kept_columns"] + parts["full_edge_matrix"]
    most = max(edges + parts["normalised_copy"], last) + parts["patterns_of_a_batch_of_one"]
    return {"rows": features, **parts, "peak_at_least": most}


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    gb = 1e-9
    lines = [
        "| what | |",
        "|---|---|",
        f"| tokens, layers, active features | {found['positions']:,}, {found['layers']}, "
        f"{found['active_features']:,} |",
        f"| rows, edge floor | {found['rows']:,} features and {found['logits']} logits, "
        f"{found['edge_floor']:g} |",
        f"| peak resident memory, whole process | {found['peak'] * gb:.2f} GB "
        f"(limit {LIMIT * gb:g}) |",
        f"| grown since the recording, estimated | {(found['peak'] - found['recorded']) * gb:.2f} "
        f"GB, {found['estimate'] * gb:.2f} GB |",
        f"| wall, CPU | {found['wall']:,.0f} s, {found['cpu']:,.0f} s |",
        f"| a row: wall, CPU | {found['wall_a_row']:.2f} s, {found['cpu_a_row']:.2f} s |",
        f"| conservation error | {found['conservation']:.1e} of the largest pre-activation |",
        f"| decoders on disk | {found['decoder_bytes'] * gb:.2f} GB |",
    ]
    more = found["arithmetic"]
    lines.append(
        f"| {more['rows']:,} rows by arithmetic | CPU {more['cpu']:,.0f} s, peak at most "
        f"{more['peak_at_most'] * gb:.1f} GB, with an edge floor of 1e-4 at most "
        f"{more['peak_at_most_with_floor_1e-4'] * gb:.1f} GB |"
    )
    lines += [
        f"| circuit-tracer's layout, {one['rows']:,} rows | at least "
        f"{one['peak_at_least'] * gb:.0f} GB, of it the square matrix "
        f"{one['full_edge_matrix'] * gb:.1f} GB |"
        for one in found["dense_layout"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the case, trace it in a fresh process, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024, help="cap on features")
    parser.add_argument("--edge-floor", type=float, default=0.0)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "long_prompt.json")
    args = parser.parse_args()
    if args.write:
        write_case(args.write)
    elif args.child:
        found = run(args.child, args.rows, args.edge_floor)
        args.out.write_text(json.dumps(found))
    else:
        report(measure(args.rows, args.edge_floor), args.out)


def measure(rows: int, edge_floor: float) -> dict[str, Any]:
    """Write the case and trace it, each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.long_prompt"]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*command, "--write", scratch], check=True)
        out = Path(scratch) / "found.json"
        options = ["--rows", str(rows), "--edge-floor", str(edge_floor), "-o", str(out)]
        subprocess.run([*command, "--child", scratch, *options], check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def report(found: dict[str, Any], out: Path) -> None:
    """Add the arithmetic, print the table, write JSON."""
    found["arithmetic"] = for_rows(found, 8192)
    everything = found["active_features"]
    found["dense_layout"] = [dense_layout(found, rows) for rows in (1024, 8192, everything)]
    found["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
