"""What `tracer train` writes, loaded by the tools whose layouts it is in.

`python -m benchmarks.written FOLDER --circuit-tracer PYTHON [--saelens PYTHON]`: PYTHON can import
circuit-tracer, or SAELens. Dictionaries of the embedded model, trained for a moment, are written in
circuit-tracer's layout, loaded and traced there and here: the same nodes, and effects apart by so
much of the largest. Autoencoders and transcoders in SAELens's layout: the same activations and
reconstructions. FOLDER keeps all files; what is finished is not trained again.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

import tracer
from benchmarks.output import RESULTS, output_file
from graphs import AttributionGraph
from replacement_models import ReplacementModel, load_transcoder
from replacement_models.replaced import special_tokens
from replacement_models.speed.choice_file import processor_name
from replacement_models.tiny.recipe.facts import PACKAGE
from replacement_models.training.config import TrainConfig
from replacement_models.training.harvest import Harvester
from replacement_models.training.text import FILE, Packed

PROMPT = "The capital of the state containing Dallas is"
WITHIN = 1e-5
"""What is called the same, as a share of the largest number."""
TOKENS = 512
"""That autoencoders are compared on."""
BASE: dict[str, Any] = {
    "dictionary": {"features": 256, "l0": 8},
    "start": {"tokens": 4096},
    "data": {"max_tokens": 24_000, "buffer": 8192, "context": 64, "prompts": 0},
    "run": {"tokens": 20_480, "batch": 256, "threads": 1},
}
Sections = dict[str, dict[str, Any]]
L1: Sections = {"dictionary": {"activation": "relu"}, "loss": {"penalty": "l1"}}
CROSS = {"kind": "cross_layer"}
TRACED: dict[str, Sections] = {
    "per-layer, JumpReLU": {},
    "per-layer, ReLU": L1,
    "per-layer, BatchTopK": {"dictionary": {"activation": "batch_topk"}},
    "per-layer, Gated": {"dictionary": {"activation": "gated"}},
    "per-layer, skip": {"dictionary": {"skip": True}},
    "per-layer, Matryoshka": {"dictionary": {"prefixes": [32, 128]}},
    "cross-layer, JumpReLU": {"dictionary": CROSS},
    "cross-layer, ReLU": {**L1, "dictionary": {**L1["dictionary"], **CROSS}},
    "cross-layer, window of 2": {"dictionary": {**CROSS, "span": 2}},
    "cross-layer, tied": {"dictionary": {**CROSS, "tied": True}},
    "cross-layer, skip": {"dictionary": {**CROSS, "skip": True}},
    "per-layer, reads the stream": {"dictionary": {"read": "residual"}},
    "cross-layer, reads the stream divided": {
        "dictionary": {**CROSS, "read": "normed_unweighted", "write": "post_norm"}
    },
}
"""What is traced by circuit-tracer. TopK is refused: there it keeps negative values too. Skips of
cross-layer transcoders are put in by hand, which circuit-tracer applies and does not load."""
POINTS = ("feature_input_hook", "feature_output_hook")
SAE = {"kind": "sae"}
ENCODED: dict[str, Sections] = {
    "SAE of MLP outputs, JumpReLU": {"dictionary": SAE},
    "SAE of the stream, ReLU": {
        **L1,
        "dictionary": {**SAE, "site": "resid_pre", **L1["dictionary"]},
    },
    "SAE of the stream, TopK": {"dictionary": {**SAE, "site": "resid_mid", "activation": "topk"}},
    "SAE of attention outputs, BatchTopK": {
        "dictionary": {**SAE, "site": "attn_out", "activation": "batch_topk"}
    },
    "SAE of MLP outputs, Gated": {"dictionary": {**SAE, "activation": "gated"}},
    "transcoder, JumpReLU": {},
    "transcoder, skip": {"dictionary": {"skip": True}},
}
"""What SAELens encodes."""


def trained(folder: Path, format: str, sections: Sections) -> TrainConfig:
    """Train a dictionary of the embedded model into a folder, in a layout."""
    given = {name: BASE.get(name, {}) | sections.get(name, {}) for name in (*BASE, "loss")}
    given["run"] |= {"format": format}
    config = TrainConfig.of({"output": str(folder), **given})
    tracer.train(config)
    return config


def traced(folder: Path, python: str) -> dict[str, Any]:
    """The graph of circuit-tracer beside ours, of a folder with a dictionary."""
    model = ReplacementModel.load(PACKAGE / "model", folder / "transcoder")
    graph = tracer.trace(model, PROMPT)
    said = yaml.safe_load((folder / "transcoder" / "config.yaml").read_text("utf-8"))
    case = {
        "kind": model.transcoder.kind,
        "points": {name: said[name] for name in POINTS},
        "tokens": graph.metadata["token_ids"],
    }
    ready = folder / "peer"
    ready.mkdir(exist_ok=True)
    for name, place in (("model", PACKAGE / "model"), ("transcoders", folder / "transcoder")):
        link = ready / name
        link.unlink(missing_ok=True)
        link.symlink_to(place.resolve())
    (ready / "case.json").write_text(json.dumps(case), "utf-8")
    call = [str(Path(__file__).with_name("peer.py")), str(ready), str(ready), "--batch", "64"]
    run_peer(python, *call)
    return {"nodes": len(graph.nodes)} | apart(graph, load_arrays(ready / "graph.safetensors"))


def run_peer(python: str, *call: str) -> None:
    """Run one of the peers' scripts; what it says stands in the error where it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, *call], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}: {done.stderr.strip().splitlines()[-1]}")


def apart(graph: AttributionGraph, peer: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nodes that only one of two graphs has, and the largest difference of effects.

    Args:
        graph: ours.
        peer: of all nodes of the other: features (layer, position, feature), tokens of targets, and
            effects on rows from columns, in the order features, errors, tokens, targets.

    Returns:
        Numbers of nodes, and the difference as a share of the largest effect.
    """
    tokens, layers = graph.metadata["token_ids"], graph.metadata["layers"]
    last = len(tokens) - 1
    features = [f"{layer}_{feature}_{at}" for layer, at, feature in peer["features"]]
    targets = [f"{layers + 1}_{token}_{last}" for token in peer["logits"]]
    around = [f"{layer}_-1_{at}" for layer in range(layers) for at in range(len(tokens))]
    around += [f"E_{token}_{at}" for at, token in enumerate(tokens)]
    row = {name: number for number, name in enumerate(graph.nodes["id"].to_pylist())}
    at = np.array([row.get(name, -1) for name in (*features, *around, *targets)])
    theirs = sum(name not in row for name in (*features, *targets))
    known = at >= 0
    effect = graph.effect.tocsr()[at[known]][:, at[known]].toarray()
    other = peer["adjacency"][np.ix_(known, known)]
    return {
        "edges": int(np.count_nonzero(other)),
        "only_ours": len(row) - int(known.sum()),
        "only_theirs": theirs,
        "difference": float(np.abs(effect - other).max() / np.abs(other).max()),
    }


@torch.no_grad()
def encoded(folder: Path, config: TrainConfig, python: str) -> dict[str, Any]:
    """What SAELens makes of the model's activations beside what we make of them."""
    model, layers = ReplacementModel.without_dictionary(None), tuple(range(4))
    harvester = Harvester(model, config, layers, special_tokens(model))
    inputs = harvester(Packed(folder / FILE).tokens[:16]).rows(slice(0, TOKENS)).inputs
    named = {f"layer_{layer}": inputs[layer].contiguous() for layer in layers}
    save_file(named, folder / "inputs.safetensors")
    out = folder / "saelens.safetensors"
    run_peer(python, str(Path(__file__).with_name("peer_saelens.py")), str(folder), str(out))
    theirs, ours = load_file(out), load_transcoder(folder / "transcoder")
    active = [ours.encode(layer, inputs[layer])[1] for layer in layers]
    written = ours.decode(active, inputs)
    found = {}
    for name, values in (("active", active), ("written", written)):
        other = [theirs[f"layer_{layer}.{name}"] for layer in layers]
        found[name] = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, other, strict=True)
        )
    l0 = float(torch.stack([one.count_nonzero(1).float().mean() for one in active]).mean())
    return {"l0": l0, "difference": max(found.values()), **found}


def rows(folder: Path, circuit_tracer: str | None, saelens: str | None) -> Iterator[dict[str, Any]]:
    """Every case whose tool is at hand."""
    for name, sections in TRACED.items() if circuit_tracer else ():
        place = folder / "circuit_tracer" / name.replace(", ", "_").replace(" ", "_")
        trained(place, "circuit-tracer", sections)
        yield {"tool": "circuit-tracer", "case": name, **traced(place, str(circuit_tracer))}
    for name, sections in ENCODED.items() if saelens else ():
        place = folder / "saelens" / name.replace(", ", "_").replace(" ", "_")
        config = trained(place, "saelens", sections)
        yield {"tool": "SAELens", "case": name, **encoded(place, config, str(saelens))}


def main() -> None:
    """Compare, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--circuit-tracer", metavar="PYTHON")
    parser.add_argument("--saelens", metavar="PYTHON")
    parser.add_argument("-o", "--out", type=output_file, default=RESULTS / "written.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"processor": processor_name(), "within": WITHIN, "rows": []}
    for row in rows(args.folder, args.circuit_tracer, args.saelens):
        print(json.dumps(row), flush=True)
        same = row["difference"] <= WITHIN and not (row.get("only_ours") or row.get("only_theirs"))
        found["rows"].append(row | {"same": same})
        args.out.write_text(f"{json.dumps(found, indent=1)}\n", "utf-8")
    print(f"{sum(row['same'] for row in found['rows'])} of {len(found['rows'])} are the same")


if __name__ == "__main__":
    main()
