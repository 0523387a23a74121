"""circuit-tracer's side of a comparison, run in an environment of its own that has circuit-tracer.

    PEER_PYTHON benchmarks/peer.py CASE_FOLDER OUT_FOLDER --batch 8 --batch 16 --cap 256

Loads the case's files into the peer's TransformerLens backend, times its `attribute` at one batch
size after the other, from 4 up until a larger one takes longer and, where 4 was the best, down
likewise, and writes the graph (graph.safetensors) and the timings (timings.json).
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.attribute_transformerlens import attribute
from circuit_tracer.attribution.context_transformerlens import AttributionContext
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_gpt2_weights,
    convert_llama_weights,
)
from transformers import AutoModelForCausalLM

PATIENCE = 2
"""So many larger batch sizes in a row that take longer than the best are the last."""
CONVERT = {
    "gpt2": convert_gpt2_weights,
    "llama": convert_llama_weights,
    "gemma2": convert_gemma_weights,
}


class Ids:
    """A stand-in for a tokenizer: token ids only."""

    bos_token_id = pad_token_id = eos_token_id = 0
    all_special_ids = (0,)
    vocab_size = 0
    padding_side = "right"

    def decode(self, ids: Any, *args: Any, **kwargs: Any) -> str:
        """The ids themselves."""
        return str(ids.tolist() if hasattr(ids, "tolist") else ids)


def load(
    folder: Path, case: dict[str, Any], device: torch.device
) -> TransformerLensReplacementModel:
    """The case as the peer's replacement model."""
    original = AutoModelForCausalLM.from_pretrained(folder / "model", use_safetensors=True).eval()
    settings = _settings(original.config, device)
    paths = folder / "transcoders"
    points: dict[str, Any] = {
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "dtype": torch.float32,  # the peer's default for cross-layer dictionaries is bfloat16
        **case.get("points", {}),
    }
    if case["kind"] == "cross_layer":
        transcoders: Any = load_clt(
            str(paths),
            scan="random",
            device=device,
            lazy_decoder=False,
            lazy_encoder=False,
            **points,
        )
        if (paths / "W_skip.safetensors").is_file():  # which the peer applies and does not load
            skip = load_file(paths / "W_skip.safetensors")["W_skip"]
            transcoders.W_skip, transcoders.skip_connection = torch.nn.Parameter(skip), True
    else:
        files = {i: str(paths / f"layer_{i}.safetensors") for i in range(settings.n_layers)}
        transcoders = load_transcoder_set(
            files, scan="random", device=device, lazy_decoder=False, lazy_encoder=False, **points
        )
    model = TransformerLensReplacementModel.from_config(settings, transcoders)
    weights = CONVERT[original.config.model_type](original, settings)
    state = {_renamed(key): value for key, value in weights.items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    unexpected = [key for key in missing if "W_" in key and "transcoder" not in key]
    assert not unexpected, unexpected
    model.tokenizer = Ids()
    return model


def _renamed(key: str) -> str:
    """The peer wraps MLPs and the unembedding."""
    return key.replace(".mlp.", ".mlp.old_mlp.").replace("unembed.", "unembed.old_unembed.")


def _settings(config: Any, device: torch.device) -> HookedTransformerConfig:
    gpt2 = config.model_type == "gpt2"
    heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_ctx=config.max_position_embeddings,
        d_head=d_head,
        n_heads=heads,
        d_mlp=4 * config.hidden_size if gpt2 else config.intermediate_size,
        d_vocab=config.vocab_size,
        act_fn={"gpt2": "gelu_new", "llama": "silu", "gemma2": "gelu_pytorch_tanh"}[
            config.model_type
        ],
        normalization_type="LN" if gpt2 else "RMS",
        eps=config.layer_norm_epsilon if gpt2 else config.rms_norm_eps,
        final_rms=not gpt2,
        gated_mlp=not gpt2,
        positional_embedding_type="standard" if gpt2 else "rotary",
        rotary_dim=None if gpt2 else d_head,
        rotary_adjacent_pairs=False,
        n_key_value_heads=None if gpt2 else config.num_key_value_heads,
        device=str(device),
        dtype=torch.float32,
        **_family(config),
    )


def _family(config: Any) -> dict[str, Any]:
    """Settings of one family; prompts stay below the window of Gemma's local layers."""
    if config.model_type != "gemma2":
        named = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
        return {"original_architecture": named[config.model_type]}
    return {
        "original_architecture": "Gemma2ForCausalLM",
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": config.attn_logit_softcapping,
        "output_logits_soft_cap": config.final_logit_softcapping,
        "use_normalization_before_and_after": True,
    }


def repair() -> None:
    """Contract with one matrix product a position instead of a gradient copy a decoder row."""
    score = AttributionContext._compute_score_hook

    def by_position(
        self: Any,
        hook_name: str,
        output_vecs: torch.Tensor,
        write_index: Any,
        read_index: Any = None,
    ) -> Any:
        if read_index is None:
            return score(self, hook_name, output_vecs, write_index)
        positions = read_index[1]
        groups = [(int(p), (positions == p).nonzero()[:, 0]) for p in positions.unique()]
        groups = [(p, write_index[at], output_vecs[at]) for p, at in groups]

        def hook(grads: torch.Tensor, hook: Any) -> None:
            for position, rows, vectors in groups:
                self._batch_buffer[rows] += vectors @ grads[:, position].T

        return hook_name, hook

    AttributionContext._compute_score_hook = by_position


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The run that took the fewest CPU seconds."""
    return min(runs, key=lambda run: run["cpu"])


def timed(
    model: Any, tokens: torch.Tensor, batch: int, args: argparse.Namespace
) -> tuple[Any, list[dict[str, float]]]:
    """The graph, and the runs at one batch size."""
    runs = []
    for _ in range(args.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        graph = attribute(
            tokens,
            model,
            batch_size=batch,
            max_feature_nodes=args.cap,
            update_interval=max(1, args.rank_every // batch),
        )
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if args.device != "cpu":  # what a GPU does is no time of the processor
            cpu = wall
        runs.append({"batch": batch, "wall": wall, "cpu": cpu})
    return graph, runs


def main() -> None:
    """Time one case and write the graph."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, action="append", required=True)
    parser.add_argument("--cap", type=int)
    parser.add_argument("--rank-every", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm", type=int, default=16, help="rows of a first, untimed graph")
    parser.add_argument("--repaired", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    case = json.loads((args.folder / "case.json").read_text())
    model = load(args.folder, case, torch.device(args.device))
    if args.repaired:
        repair()
    tokens = torch.tensor(case["tokens"])
    attribute(tokens, model, batch_size=8, max_feature_nodes=args.warm)
    timings: list[dict[str, float]] = []
    graph: Any = None
    worse = 0
    for batch in sorted(set(args.batch)):
        graph, runs = timed(model, tokens, batch, args)
        worse = worse + 1 if timings and best(runs)["cpu"] > best(timings)["cpu"] else 0
        timings += runs
        if worse == PATIENCE:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (args.out / "timings.json").write_text(json.dumps({"runs": timings, "peak_bytes": peak}))
    save_file(
        {
            "adjacency": graph.adjacency_matrix.cpu().contiguous(),
            "features": graph.active_features[graph.selected_features].cpu().contiguous(),
            "logits": torch.tensor([target.vocab_idx for target in graph.logit_targets]),
        },
        args.out / "graph.safetensors",
    )


if __name__ == "__main__":
    main()
