"""Which decoders of Hugging Face transformers tracer can take apart, and why not the others."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import nn

from replacement_models.host import Host
from replacement_models.hosts.bloom import bloom, mpt
from replacement_models.hosts.by_channel import jamba, lfm2, mamba
from replacement_models.hosts.falcon import falcon
from replacement_models.hosts.falcon_h1 import falcon_h1
from replacement_models.hosts.fused import codegen, dbrx, gpt_bigcode
from replacement_models.hosts.gated import afmoe, bitnet, laguna
from replacement_models.hosts.gated_delta import olmo_hybrid, qwen3_next
from replacement_models.hosts.gemma import gemma
from replacement_models.hosts.glm4 import glm4
from replacement_models.hosts.gpt2 import gpt2, gpt_neo
from replacement_models.hosts.gpt_neox import gpt_neox, gpt_neox_japanese, persimmon
from replacement_models.hosts.granite import granite, hyperclovax
from replacement_models.hosts.kimi import kimi_linear
from replacement_models.hosts.latent import deepseek, minicpm3
from replacement_models.hosts.llama import llama
from replacement_models.hosts.llama_likes import (
    apertus,
    llama4,
    mimo_v2,
    nanochat,
    olmo,
    vaultgemma,
)
from replacement_models.hosts.olmo2 import olmo2
from replacement_models.hosts.one_norm import cohere, gptj, phi
from replacement_models.hosts.opt import biogpt, opt, xglm
from replacement_models.hosts.phi3 import phi3
from replacement_models.hosts.refusals import REFUSED
from replacement_models.hosts.state_space import bamba, granite_hybrid, mamba2, nemotron_h
from replacement_models.hosts.tracr import tracr
from replacement_models.hosts.zamba import zamba, zamba2

AS_LLAMA = (
    "arcee", "aria_text", "cwm", "dots1", "emu3", "emu3_text_model", "ernie4_5", "ernie4_5_moe",
    "exaone_moe", "flint", "glm", "glm4_moe", "gpt_oss", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "hy_v3", "internlm3", "iquestcoder", "jais2", "llama", "mellum",
    "minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "nemotron", "olmoe", "phimoe",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm",
    "starcoder2",
)  # fmt: skip
AS_QWEN3_NEXT = ("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")
AS_KIMI = ("bailing_hybrid", "kimi_linear")
AS_OLMO2 = ("exaone4", "flex_olmo", "olmo2", "olmo3")
AS_GLM4 = ("glm4", "kolibri1")
AS_DEEPSEEK = (
    "axk1",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "youtu",
)
AS_GRANITE = ("granite", "granitemoe", "granitemoeshared")
AS_COHERE = ("cohere", "cohere2", "cohere2_moe", "cohere_compass_text")
AS_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")
HOSTS: dict[str, Callable[[nn.Module], Host]] = {
    "afmoe": afmoe,
    "apertus": apertus,
    "biogpt": biogpt,
    "bitnet": bitnet,
    "bloom": bloom,
    "codegen": codegen,
    "dbrx": dbrx,
    "falcon": falcon,
    "bamba": bamba,
    "falcon_h1": falcon_h1,
    "falcon_mamba": mamba,
    "gpt2": gpt2,
    "gpt_bigcode": gpt_bigcode,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gpt_neox_japanese": gpt_neox_japanese,
    "gptj": gptj,
    "hyperclovax": hyperclovax,
    "laguna": laguna,
    "llama4": llama4,
    "llama4_text": llama4,
    "minicpm3": minicpm3,
    "mimo_v2_flash": mimo_v2,
    "mpt": mpt,
    "nanochat": nanochat,
    "olmo": olmo,
    "opt": opt,
    "persimmon": persimmon,
    "granitemoehybrid": granite_hybrid,
    "jamba": jamba,
    "lfm2": lfm2,
    "lfm2_moe": lfm2,
    "mamba": mamba,
    "mamba2": mamba2,
    "nemotron_h": nemotron_h,
    "olmo_hybrid": olmo_hybrid,
    "phi": phi,
    "phi3": phi3,
    "phi4_multimodal": phi3,
    "tracr": tracr,
    "vaultgemma": vaultgemma,
    "xglm": xglm,
    "zamba": zamba,
    "zamba2": zamba2,
    **dict.fromkeys(AS_LLAMA, llama),
    **dict.fromkeys(AS_COHERE, cohere),
    **dict.fromkeys(AS_DEEPSEEK, deepseek),
    **dict.fromkeys(AS_GLM4, glm4),
    **dict.fromkeys(AS_GRANITE, granite),
    **dict.fromkeys(AS_KIMI, kimi_linear),
    **dict.fromkeys(AS_OLMO2, olmo2),
    **dict.fromkeys(AS_GEMMA, gemma),
    **dict.fromkeys(AS_QWEN3_NEXT, qwen3_next),
}
"""`model_type` of a configuration to the function that names the model's parts.

What a variant adds beyond its family's parts is refused when it is recorded (layout.py).
"""

RECURRENT = {"recurrent_gemma", "rwkv", "xlstm"}
CONVOLUTION = {"inkling2_text", "inkling_text", "lfm3", "zaya"}
AFTER_AN_ENCODER = {"musicgen", "musicgen_melody", "speech_to_text_2", "trocr", "whisper"}


class Support(NamedTuple):
    """Whether a model type is supported; if not, why."""

    supported: bool
    reason: str


def support(model_type: str) -> Support:
    """Sort any `model_type` into supported, or refused with the reason."""
    if model_type in HOSTS or _same_as(model_type):
        return Support(True, "")
    return Support(False, _reason(model_type))


def decoders() -> list[str]:
    """Every `model_type` for which the installed transformers has a causal language model."""
    from transformers.models.auto import modeling_auto

    return sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _same_as(model_type: str) -> bool:
    """Whether another name stands for a supported configuration (Code Llama, GPT-SW3)."""
    from transformers.models.auto import configuration_auto

    classes: dict[str, str] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    return classes.get(model_type) in {classes[name] for name in HOSTS if name in classes}


def _reason(model_type: str) -> str:
    from transformers.models.auto import modeling_auto

    layers = {
        "recurrent layers": RECURRENT,
        "convolutions between tokens": CONVOLUTION,
    }
    known: dict[str, Collection[str]] = {
        f"tracer does not know yet how its {kind} are laid out": types
        for kind, types in layers.items()
    }
    for reason, types in {**known, **REFUSED}.items():
        if model_type in types:
            return reason
    if model_type in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "encoder-decoder: its decoder also reads an encoder"
    if model_type in AFTER_AN_ENCODER:
        return "encoder-decoder: its decoder also reads an encoder"
    if model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "built as a bidirectional encoder"
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "not yet supported: tracer does not know how it is laid out"
    return "no causal language model of the installed transformers"


def support_table() -> str:
    """Every decoder of the installed transformers, by support and reason, as Markdown."""
    from transformers import __version__ as version

    found: dict[str, list[str]] = {}
    for model_type in decoders():
        supported, reason = support(model_type)
        title = "**supported**" if supported else f"refused: {reason}"
        found.setdefault(title, []).append(f"`{model_type}`")
    title = f"{len(decoders())} decoders of transformers {version}"
    lines = [f"| {title} | `model_type` |", "|---|---|"]
    for title in sorted(found, key=lambda title: (not title.startswith("**"), title)):
        lines.append(f"| {title} ({len(found[title])}) | {', '.join(found[title])} |")
    return "\n".join(lines)


def families_line() -> str:
    """The supported types that the installed transformers has, in one sentence of Markdown."""
    from transformers import __version__ as version

    names = [f"`{name}`" for name in decoders() if support(name).supported]
    return (
        f"{len(names)} of the {len(decoders())} decoder types of transformers {version}: "
        f"{', '.join(names)}."
    )
