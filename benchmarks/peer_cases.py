"""Small cases traced by circuit-tracer, for tests/test_tracer_peer_cases.py to compare with.

    PEER_PYTHON benchmarks/peer_cases.py tests/data/peer

PEER_PYTHON can import circuit-tracer. Random tiny models and dictionaries, in float64; a case is a
folder with the model, the transcoders in circuit-tracer's layout, what was asked (meta.json), the
graph, and what two interventions give. circuit-tracer shares one rotary table between the layers of
a model; here every layer keeps its own, as Gemma 3 has it. The linear skips of cross-layer
transcoders, which it cannot load, are put in by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from circuit_tracer.attribution.attribute_transformerlens import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from peer import Ids
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_gpt2_weights,
    convert_llama_weights,
)
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS, WIDTH, HEADS, HEAD, VOCABULARY, FEATURES, CONTEXT = 3, 16, 4, 4, 40, 48, 64
PROMPT = (0, 9, 33, 14, 27, 6, 18)
WEIGHTS = (0.6, 0.4)
"""Of a case's own targets: a difference of two tokens, and a random direction."""


class Case(NamedTuple):
    """A family and a dictionary; where it reads and writes in circuit-tracer's words."""

    family: str
    seed: int
    cross_layer: bool = True
    skip: bool = False
    threshold: bool = False
    read: str = "hook_resid_mid"
    write: str = "hook_mlp_out"
    own_targets: bool = False


CASES = {
    "gpt2_clt": Case("gpt2", 101),
    "gemma2_clt": Case("gemma2", 102, threshold=True, read="ln2.hook_normalized"),
    "gemma3_skip_plt": Case("gemma3_text", 103, False, True, read="mlp.hook_in"),
    "llama_skip_clt": Case("llama", 104, skip=True, threshold=True),
    "llama_targets_plt": Case(
        "llama", 105, False, read="mlp.hook_in", write="mlp.hook_out", own_targets=True
    ),
}
CONVERTERS = {
    "gpt2": convert_gpt2_weights,
    "llama": convert_llama_weights,
    "gemma2": convert_gemma_weights,
    "gemma3_text": convert_gemma_weights,
}
CAPS = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
SLIDING = {
    "sliding_window": 4,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, **SLIDING, **CAPS},
    "gemma3_text": {
        "num_key_value_heads": 2,
        **SLIDING,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
}


def random_model(case: Case, generator: torch.Generator) -> Any:
    """A Hugging Face model, norms around their usual weight."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
        "bos_token_id": 0,
    }
    by_family = {"n_inner": 32} if case.family == "gpt2" else {"head_dim": HEAD}
    options = {**common, **by_family, **OPTIONS[case.family]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.family, **options)).eval()
    usual = 0 if case.family.startswith("gemma") else 1
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = (usual + 0.2 * noise if is_norm else 0.3 * noise).float()
    return model


def write_transcoders(case: Case, folder: Path, generator: torch.Generator) -> None:
    """Random dictionaries in circuit-tracer's layout."""

    def noise(*shape: int, size: float = 0.4) -> Tensor:
        return size * torch.randn(shape, generator=generator)

    folder.mkdir()
    skips = []
    for index in range(LAYERS):
        weights = {
            "W_enc": noise(FEATURES, WIDTH),
            "b_enc": noise(FEATURES) - 1.5,
            "b_dec": noise(WIDTH),
        }
        decoder = noise(FEATURES, LAYERS - index if case.cross_layer else 1, WIDTH)
        threshold, skip = noise(FEATURES).abs(), noise(WIDTH, WIDTH, size=0.2)
        if case.cross_layer:
            skips.append(skip)
            weights |= {"threshold": threshold} if case.threshold else {}
            named = {f"{key}_{index}": value for key, value in weights.items()}
            save_file(named, folder / f"W_enc_{index}.safetensors")
            save_file({f"W_dec_{index}": decoder}, folder / f"W_dec_{index}.safetensors")
        else:
            weights |= {"activation_function.threshold": threshold} if case.threshold else {}
            weights |= {"W_skip": skip} if case.skip else {}
            save_file(weights | {"W_dec": decoder[:, 0]}, folder / f"layer_{index}.safetensors")
    if case.cross_layer and case.skip:
        save_file({"W_skip": torch.stack(skips)}, folder / "W_skip.safetensors")
    config = {
        "model_name": f"tiny-{case.family}",
        "model_kind": "cross_layer_transcoder" if case.cross_layer else "transcoder_set",
        "feature_input_hook": case.read,
        "feature_output_hook": case.write,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def peer_transcoders(case: Case, folder: Path) -> Any:
    """The same dictionaries, loaded by circuit-tracer."""
    options: dict[str, Any] = {
        "scan": "random",
        "device": torch.device("cpu"),
        "dtype": torch.float64,
        "lazy_encoder": False,
        "lazy_decoder": False,
        "feature_input_hook": case.read,
        "feature_output_hook": case.write,
    }
    if not case.cross_layer:
        files = {index: str(folder / f"layer_{index}.safetensors") for index in range(LAYERS)}
        return load_transcoder_set(files, **options)
    found = load_clt(str(folder.resolve()), **options)
    if case.skip:
        skip = load_file(folder / "W_skip.safetensors")["W_skip"]
        found.W_skip, found.skip_connection = torch.nn.Parameter(skip.double()), True
    return found


def settings(case: Case, config: Any) -> HookedTransformerConfig:
    """TransformerLens's configuration of a Hugging Face model."""
    gpt2, gemma = case.family == "gpt2", case.family.startswith("gemma")
    found: dict[str, Any] = {
        "act_fn": "gelu_new" if gpt2 else "gelu_pytorch_tanh" if gemma else "silu",
        "eps": config.layer_norm_epsilon if gpt2 else config.rms_norm_eps,
        "normalization_type": "LN" if gpt2 else "RMS",
        "positional_embedding_type": "standard" if gpt2 else "rotary",
        "gated_mlp": not gpt2,
        "final_rms": not gpt2,
        "original_architecture": config.architectures[0],
    }
    if not gpt2:
        found |= {"rotary_dim": HEAD, "rotary_adjacent_pairs": False}
        found |= {"n_key_value_heads": 2, "rotary_base": config.rope_theta}
    if gemma:
        kinds = ["local" if kind.startswith("sliding") else "global" for kind in config.layer_types]
        found |= {"use_normalization_before_and_after": True, "use_local_attn": True}
        found |= {"window_size": config.sliding_window, "attn_types": kinds}
        found["attn_scale"] = config.query_pre_attn_scalar**0.5
    if case.family == "gemma2":
        found |= {"attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0}
    if case.family == "gemma3_text":
        found |= {"use_qk_norm": True, "rotary_base_local": config.rope_local_base_freq}
    return HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=CONTEXT,
        d_head=HEAD,
        n_heads=HEADS,
        d_mlp=32,
        d_vocab=VOCABULARY,
        device="cpu",
        dtype=torch.float64,
        model_name=f"tiny-{case.family}",
        **found,
    )


def peer_model(case: Case, original: Any, folder: Path) -> TransformerLensReplacementModel:
    """The case as circuit-tracer's replacement model, with the weights in float64."""
    config = settings(case, original.config)
    model = TransformerLensReplacementModel.from_config(config, peer_transcoders(case, folder))
    weights = CONVERTERS[case.family](original.double(), config)
    state = {
        key.replace(".mlp.", ".mlp.old_mlp.").replace("unembed.", "unembed.old_unembed."): value
        for key, value in weights.items()
    }
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert not [key for key in missing if "W_" in key and "transcoder" not in key], missing
    model.tokenizer = Ids()
    return model


def make(case: Case, folder: Path) -> None:
    """Write one case."""
    generator = torch.Generator().manual_seed(case.seed)
    original = random_model(case, generator)
    original.save_pretrained(folder / "model")
    write_transcoders(case, folder / "transcoders", generator)
    torch.set_default_dtype(torch.float64)  # circuit-tracer's edges are in the default dtype
    model = peer_model(case, original, folder / "transcoders")
    tokens = torch.tensor(PROMPT)
    unembedding = model.unembed.W_U
    direction = torch.randn(WIDTH, generator=generator)
    vectors = torch.stack([unembedding[:, 7] - unembedding[:, 11], direction])
    own = [(str(index), *pair) for index, pair in enumerate(zip(WEIGHTS, vectors, strict=True))]
    graph = attribute(tokens, model, attribution_targets=own if case.own_targets else None)
    active, values = graph.active_features, graph.activation_values
    first, last = active[0].tolist(), active[-1].tolist()
    changes = [(*first, 2 * float(values[0]) + 1), (*last, 0.0)]
    tensors = {
        "features": active,
        "activations": values,
        "adjacency": graph.adjacency_matrix.float(),
        "probabilities": graph.logit_probabilities,
        "targets": vectors,
    }
    kinds = {
        "direct": {"constrained_layers": range(LAYERS), "apply_activation_function": False},
        "free": {"freeze_attention": False},
    }
    for kind, options in kinds.items():
        logits, activations = model.feature_intervention(tokens, changes, **options)
        tensors |= {f"{kind}.logits": logits[0], f"{kind}.activations": activations}
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "peer.safetensors"
    )
    meta = {
        "tokens": PROMPT,
        "logits": [int(target.vocab_idx) for target in graph.logit_targets],
        "own_targets": WEIGHTS if case.own_targets else None,
        "interventions": changes,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    torch.set_default_dtype(torch.float32)
    print(folder.name, f"{len(active)} features, {len(meta['logits'])} targets")


if __name__ == "__main__":
    TransformerLensReplacementModel._deduplicate_attention_buffers = lambda self: None
    for name, case in CASES.items():
        make(case, Path(sys.argv[1]) / name)
