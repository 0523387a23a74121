"""The memory estimate against what is measured, over shapes, dictionaries and options.

    python -m benchmarks.memory
    python -m benchmarks.memory --model FOLDER -o FILE.json    # its own neurons

Every case runs in a process of its own: a model with random weights, or a folder's, is loaded and
its prompt traced; the estimate that `tracer.trace` makes once the prompt is recorded is compared
with how far the resident set then rises at most above where it stood. Prints a table and writes
JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig

import tracer
from benchmarks.output import RESULTS, output_file
from benchmarks.random_shapes import random_layer
from benchmarks.resident import forget_peak, peak, resident, trim
from replacement_models import (
    CrossLayerTranscoder,
    JumpReLU,
    PerLayerTranscoder,
    ReLU,
    ReplacementModel,
    Transcoder,
)
from replacement_models.dictionaries.activation import Activation
from replacement_models.dictionaries.neurons import neurons
from replacement_models.hosts import host_of
from tracer.attribution.memory import Estimate

WIDTH, LAYERS, FEATURES, VOCABULARY, NEURONS = 512, 8, 4096, 8192, 1408
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    shape: str
    kind: str
    positions: int
    active: int
    """Features that fire a token and layer, on average; a model's own neurons all do."""
    max_features: int | None = None
    edge_floor: float = 0.0
    recompute_patterns: bool | None = None
    dtype: str = "float32"
    keep_attention: bool = False


CASES = [
    Case("llama", "per_layer", 256, 40, max_features=256),
    Case("gpt2", "cross_layer", 64, 60, max_features=256),
    Case("gpt2", "per_layer", 32, 40),
    Case("llama", "per_layer", 512, 16, max_features=128),
    Case("llama", "per_layer", 512, 16, max_features=128, recompute_patterns=True),
    Case("gpt2", "per_layer", 256, 40, max_features=256, edge_floor=1e-3),
    Case("llama", "cross_layer", 128, 40, max_features=128),
    Case("gpt2", "per_layer", 128, 40, max_features=1024),
    Case("gpt2", "per_layer", 64, 40, max_features=256, dtype="float64"),
    Case("gpt2", "per_layer", 32, 40, edge_floor=1e-3),
    Case("llama", "neurons", 12, NEURONS, max_features=500),
    Case("llama", "neurons", 12, NEURONS, max_features=2500),
    Case("gpt2", "per_layer", 256, 40, max_features=4000),
    Case("mamba", "per_layer", 96, 40, max_features=64),
    Case("mamba", "per_layer", 96, 40, max_features=64, recompute_patterns=True),
    Case("mamba2", "per_layer", 256, 40, max_features=128),
    Case("qwen3_next", "per_layer", 256, 40, max_features=128),
    Case("gpt2", "per_layer", 64, 40, max_features=1024, keep_attention=True),
    Case("gpt2", "per_layer", 32, 40, keep_attention=True),
]
"""The twelfth and thirteenth have over 3e8 entries in their rows."""
PROMPT = "The capital of the state containing Dallas is"
CAPS = (1500, 4000)
"""Features explained of a model in a folder."""
HYBRIDS = {
    "mamba": {"state_size": 16, "residual_in_fp32": False},
    "mamba2": {"num_heads": 16, "head_dim": 64, "state_size": 64, "n_groups": 1},
    "qwen3_next": {
        **{"num_key_value_heads": 2, "head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2},
        **{"linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 64},
        **{"linear_value_head_dim": 64, "moe_intermediate_size": 256},
    },
}


def random_model(case: Case, tokens: list[int]) -> ReplacementModel:
    """A model and a dictionary of which `case.active` features fire a token and layer."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    model = AutoModelForCausalLM.from_config(_config(case.shape), dtype=dtype).eval()
    if case.kind == "neurons":
        return ReplacementModel.from_huggingface(model, None, neurons(host_of(model)))
    silent = dictionary("per_layer", [ReLU()] * LAYERS, features=1)
    inputs = ReplacementModel.from_huggingface(model, None, silent).record(tokens).inputs
    torch.manual_seed(1)
    encoders = [layer.W_enc for layer in dictionary(case.kind, [ReLU()] * LAYERS).layers]
    firing = [
        JumpReLU(
            (x[1:].float() @ W.T).flatten().topk(case.active * len(x)).values[-1].expand(len(W))
        )
        for x, W in zip(inputs, encoders, strict=True)
    ]
    torch.manual_seed(1)
    return ReplacementModel.from_huggingface(model, None, dictionary(case.kind, firing))


def _config(shape: str) -> Any:
    if shape == "gpt2":
        return GPT2Config(**COMMON)
    if shape == "llama":
        return LlamaConfig(**COMMON, num_key_value_heads=2, intermediate_size=NEURONS)
    return AutoConfig.for_model(shape, **{**COMMON, **HYBRIDS[shape]})


def dictionary(
    kind: str, activations: Sequence[Activation], features: int = FEATURES
) -> Transcoder:
    """Random weights."""
    of_kind = {"per_layer": PerLayerTranscoder, "cross_layer": CrossLayerTranscoder}[kind]
    layers = [
        random_layer(features, LAYERS - layer if kind == "cross_layer" else 1, WIDTH, activation)
        for layer, activation in enumerate(activations)
    ]
    return of_kind(layers)


def run(case: Case, folder: str | None) -> dict[str, Any]:
    """Trace a case in this process and compare."""
    if folder is None:
        tokens = [0, *torch.randint(1, VOCABULARY, (case.positions - 1,)).tolist()]
        model = random_model(case, tokens)
    else:
        model = ReplacementModel.load(folder, "neurons")
        tokens = list(model.tokenize(PROMPT))
    found: dict[str, Any] = {"positions": len(tokens)}

    def start(need: Estimate) -> None:
        found["estimate"], found["stage"] = need.device, need.stage
        found["before"] = resident()
        forget_peak()

    graph = tracer.trace(
        model,
        tokens,
        max_features=case.max_features,
        edge_floor=case.edge_floor,
        recompute_patterns=case.recompute_patterns,
        keep_attention=case.keep_attention,
        # What was freed before must not count as memory that tracing did not take.
        on_recording=lambda _: trim(),
        on_estimate=start,
    )
    found["measured"] = peak() - found.pop("before")
    found["ratio"] = found["estimate"] / found["measured"]
    found["active_features"] = graph.metadata["active_features"]
    found["edges"] = graph.effect.nnz
    found["floored_share"] = graph.metadata.get("floored_share", 0.0)
    return found


def cases_of(folder: str | None) -> list[Case]:
    """`CASES`, or those of a model in a folder, whose prompt and neurons are read there."""
    if folder is None:
        return CASES
    return [Case(Path(folder).name, "neurons", 0, 0, max_features=most) for most in CAPS]


def measure(number: int, folder: str | None) -> dict[str, Any]:
    """Trace a case in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(number)]
    command += [] if folder is None else ["--model", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return asdict(cases_of(folder)[number]) | found


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | dictionary | tokens | active | rows | options | estimate GB | measured GB "
        "| estimate / measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        options = [
            f"edge floor {one['edge_floor']:g}" if one["edge_floor"] else "",
            "patterns recomputed" if one["recompute_patterns"] else "",
            "what steers attention" if one.get("keep_attention") else "",
            one["dtype"] if one["dtype"] != "float32" else "",
        ]
        lines.append(
            f"| {one['shape']} | {one['kind'].replace('_', '-')} | {one['positions']} "
            f"| {one['active_features']:,} | {one['max_features'] or 'all'} "
            f"| {', '.join(filter(None, options))} | {one['estimate'] / 1e9:.2f} "
            f"| {one['measured'] / 1e9:.2f} | {one['ratio']:.2f} ({one['stage']}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model, traced by its neurons")
    parser.add_argument("--only", type=int, action="append", help="number of a case, from 0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "memory.json")
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(run(cases_of(args.model)[args.child], args.model)))
        return
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    results = []
    for number in args.only or range(len(cases_of(args.model))):
        results.append(measure(number, args.model))
        print(table(results).splitlines()[-1], flush=True)
        found = {"machine": machine, "results": results}
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(results))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
