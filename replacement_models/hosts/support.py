"""Which decoders of Hugging Face transformers tracer can take apart, and why not the others."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from replacement_models.host import Host
from replacement_models.hosts.gemma import gemma
from replacement_models.hosts.gpt2 import gpt2
from replacement_models.hosts.gpt_neox import gpt_neox
from replacement_models.hosts.llama import llama
from replacement_models.hosts.olmo2 import olmo2
from replacement_models.hosts.phi3 import phi3

HOSTS: dict[str, Callable[[nn.Module], Host]] = {
    "gemma2": gemma,
    "gemma3": gemma,
    "gemma3_text": gemma,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_oss": llama,
    "llama": llama,
    "mistral": llama,
    "mixtral": llama,
    "olmo2": olmo2,
    "phi3": phi3,
    "qwen2": llama,
    "qwen3": llama,
    "qwen3_moe": llama,
}
"""`model_type` of a configuration to the function that names the model's parts."""

STATE_SPACE = {
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba", "mamba2",
    "nemotron_h", "zamba", "zamba2",
}  # fmt: skip
"""Models with Mamba layers."""
LINEAR_ATTENTION = {
    "bailing_hybrid", "kimi_linear", "minimax", "olmo_hybrid", "qwen3_5", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text",
}  # fmt: skip
"""Models with linear-attention or gated delta-rule layers."""
RECURRENT = {"inkling2_text", "inkling_text", "recurrent_gemma", "rwkv", "xlstm"}
CONVOLUTION = {"lfm2", "lfm2_moe", "lfm3", "zaya"}


class Support(NamedTuple):
    """Whether a model type is supported; if not, why."""

    supported: bool
    reason: str


def support(model_type: str) -> Support:
    """Sort any `model_type` into supported, or refused with the reason."""
    if model_type in HOSTS:
        return Support(True, "")
    return Support(False, _reason(model_type))


def _reason(model_type: str) -> str:
    from transformers.models.auto import modeling_auto

    layers = {
        "state-space layers (Mamba)": STATE_SPACE,
        "linear-attention layers": LINEAR_ATTENTION,
        "recurrent layers": RECURRENT,
        "convolution layers between tokens": CONVOLUTION,
    }
    for kind, types in layers.items():
        if model_type in types:
            return f"{kind}: no attention pattern that could be frozen"
    if model_type in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "encoder-decoder: its decoder also reads an encoder"
    if model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "a bidirectional encoder: no next-token logits to explain"
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "not yet supported: its layout is not known to tracer"
    return "not a causal language model that the installed transformers knows"
