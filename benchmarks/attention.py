"""Attention explained, measured: `python -m benchmarks.attention [FILE.json]`.

What head loadings cost beside a sweep of the same rows, and what explanations find on the embedded
default: where induction looks from, which heads write that, which head carries Austin. Everything
is drawn from fixed seeds; `--quick` takes a small shape and two sequences.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import tracer
from replacement_models import (
    DenseDecoder,
    JumpReLU,
    PerLayerTranscoder,
    ReplacementModel,
    TranscoderLayer,
)
from tracer.attention import loadings as attention_loadings
from tracer.attention.floor import carried
from tracer.attention.loadings import Pairs, loadings
from tracer.attention.pulling import Unmixed, chunks, pull
from tracer.attention.pushing import slabs
from tracer.attention.sources import positions_of
from tracer.attribution.local_model import LinearLayer, LocalModel, linearise
from tracer.attribution.product import product
from tracer.attribution.sweep import sweep
from tracer.attribution.targets import feature_rows

SEED = 3
LENGTH, REPEATS = 12, 8
"""Random tokens before they repeat, and sequences."""
HEADS = ((3, 3), (3, 4))
"""Those that do induction."""
PEAK = 1024
"""Rows, columns and inner size of the product that others are compared with."""
ASKED = "The capital of the state containing Dallas is"


def random_model(width: int, layers: int, features: int) -> ReplacementModel:
    """A random Llama with a per-layer dictionary of which some 40 features a token fire."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=512,
        max_position_embeddings=512,
    )
    made = LlamaForCausalLM(config).eval()

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape) / width**0.5

    dictionary = PerLayerTranscoder(
        [
            TranscoderLayer(
                W_enc=noise(features, width),
                b_enc=torch.zeros(features),
                decoder=DenseDecoder(noise(features, 1, width)),
                b_dec=torch.zeros(width),
                activation=JumpReLU(torch.full((features,), 2.0)),
            )
            for _ in range(layers)
        ]
    )
    return ReplacementModel.from_huggingface(made, None, dictionary, name="random")


def cpu(call: Callable[[], Any], times: int = 3) -> float:
    """Least CPU seconds of some calls."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int = 15) -> dict[str, float]:
    """Least CPU seconds of calls that take turns, so that what else runs slows them all alike."""
    found = [{name: cpu(call, 1) for name, call in calls.items()} for _ in range(rounds)]
    return {name: min(one[name] for one in found) for name in calls}


@torch.no_grad()
def costs(width: int, layers: int, positions: int, count: int) -> dict[str, float]:
    """CPU seconds of a sweep, of pushing and pulling as many sources and rows, of the products.

    One thread; "products over peak" is the rate of the inner products over that of a large one.
    """
    torch.set_num_threads(1)
    model = random_model(width, layers, 1024)
    tokens = [random.Random(SEED).randrange(512) for _ in range(positions)]
    recording = model.record(tokens)
    local, plain = linearise(model, recording, 1, count), linearise(model, recording, 1, plain=True)
    drawn = np.sort(np.random.default_rng(SEED).permutation(len(local.features))[:count])
    rows = feature_rows(model, recording, local, drawn)
    columns = np.concatenate([drawn, plain.token_column(0) + np.arange(positions)])
    pairs = every_edge(plain, columns, drawn)

    def push() -> Any:
        return list(slabs(plain, columns, layers - 1))

    tokens_at = np.arange(positions)
    values = by_key_head(plain.layers[0], plain.token_vectors)

    def pulled() -> None:
        for chunk in chunks(rows):
            for at in pull(plain, rows[chunk], 0, 0, mixed=False):
                if isinstance(at, Unmixed):
                    carried(plain, at, values, tokens_at)

    seconds = in_turn({"sweep": lambda: sweep(local, rows), "push": push, "pull": pulled})
    seconds["products"], share = inner_products(
        lambda: list(loadings(plain, columns, rows, pairs, 8))
    )
    ratio = (seconds["push"] + seconds["pull"]) / seconds["sweep"]
    told = {"rows": len(rows), "edges": len(pairs), "push and pull over sweep": ratio}
    return seconds | told | {"products over peak": share}


def by_key_head(maps: LinearLayer, stream: Tensor) -> Tensor:
    """What a layer reads of a stream, (kv_heads, positions, d_head)."""
    kv_heads = len(maps.transposed_pattern(0, 1))
    return (stream @ maps.value).unflatten(1, (kv_heads, -1)).transpose(0, 1)


def every_edge(local: LocalModel, columns: np.ndarray, rows: np.ndarray) -> Pairs:
    """Sources (features, tokens) with the features that read above them, not before them."""
    source, target = (part.ravel() for part in np.indices((len(columns), len(rows))))
    feature = columns < len(local.features)
    layer = np.full(len(columns), -1)
    layer[feature] = local.table[0][columns[feature]]
    below = layer[source] < local.table[0][rows][target]
    below &= positions_of(local, columns)[source] <= local.table[1][rows][target]
    return Pairs(source[below], target[below])


def inner_products(call: Callable[[], Any], rounds: int = 7) -> tuple[float, float]:
    """What the products of values with what they are worth take inside `call`.

    Returns:
        Least CPU seconds of some calls, and their rate over that of the largest products here,
        which take turns with them.
    """
    spent, work = 0.0, 0

    def counted(x: Tensor, weight: Tensor) -> Tensor:
        nonlocal spent, work
        start = time.process_time()
        found = product(x, weight)
        spent += time.process_time() - start
        work += 2 * len(x) * weight.numel()
        return found

    call()  # ways of multiplying are chosen at first use
    square, seconds, fastest = torch.randn(PEAK, PEAK), [], []
    for _ in range(rounds):
        spent, work = 0.0, 0
        with mock.patch.object(attention_loadings, "product", counted):
            call()
        seconds.append(spent)
        fastest.append(cpu(lambda: product(square, square), 1))
    return min(seconds), work / min(seconds) / (2 * PEAK**3 / min(fastest))


def induction(model: ReplacementModel, repeats: int) -> dict[str, Any]:
    """Where the heads that do induction look from, which heads write it, and what swaps do."""
    rng = random.Random(SEED)
    special = set(model.tokenizer.all_special_ids)
    ordinary = [token for token in range(len(model.tokenizer)) if token not in special]
    found: dict[str, list[dict[str, float]]] = {f"{a}.{b}": [] for a, b in HEADS}
    for _ in range(repeats):
        once = rng.sample(ordinary, LENGTH)
        tokens = [model.tokenizer.bos_token_id, *once, *once[: LENGTH // 2]]
        key = 1 + LENGTH // 2
        other = next(token for token in ordinary if token not in once)
        graph = tracer.trace(model, tokens, max_features=0)
        for layer, head in HEADS:
            one = tracer.explain_attention(model, graph, layer=layer, head=head, query=-1, key=key)
            by = {(r["side"], r["position"]): r["weight"] for r in one.by_position.to_pylist()}
            writes = {
                f"{row['layer']}.{row['head']}": row["weight"]
                for row in one.heads.to_pylist()
                if row["side"] == "k" and row["layer"] == layer - 1
            }
            row = {"pattern": one.pattern, "log_odds": one.log_odds}
            row["previous"] = by["k", key - 1] / one.explained
            for name, at in (("key swapped", key - 1), ("query swapped", len(tokens) - 1)):
                changed = [*tokens[:at], other, *tokens[at + 1 :]]
                seen = model.record(changed).layers[layer].attention_pattern()
                row[name] = float(seen[head, -1, key])
            row |= {f"by {name}": value for name, value in writes.items()}
            found[f"{layer}.{head}"].append(row)
    return {
        head: {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for head, rows in found.items()
    }


def austin(model: ReplacementModel) -> dict[str, Any]:
    """The head that carries most into Austin, and the one whose ablation at the end hurts most."""
    graph = tracer.trace(model, ASKED)
    table = tracer.head_logits(model, graph).to_pylist()
    carried = {f"{row['layer']}.{row['head']}": row["through"] for row in table}
    metric = tracer.patching.logit_difference(model, " Austin", " Nashville")
    hurt: dict[str, float] = {}
    last = graph.metadata["position"]
    for row in tracer.patching.ablate(model, ASKED, metric, sites="head").to_pylist():
        if row["position"] in (None, last):
            hurt[f"{row['layer']}.{row['index']}"] = row["effect"]
    return {
        "carries most": max(carried, key=lambda name: carried[name]),
        "hurts most": min(hurt, key=lambda name: hurt[name]),
        "by": min(hurt.values()),
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    shape = (128, 4, 16, 100) if options.quick else (512, 8, 32, 500)
    model = ReplacementModel.load()
    found = {
        "induction": induction(model, 2 if options.quick else REPEATS),
        "austin": austin(model),
        "costs": costs(*shape),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
