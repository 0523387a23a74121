"""Gemma 2 and 3: norms before and after attention and MLP, weights stored less one, soft caps."""

from typing import Any

import torch

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import separate
from replacement_models.hosts.norms import shifted_rms_norm
from replacement_models.hosts.weights import read


def gemma(model: Any) -> Host:
    """Name the parts of a Gemma 2 or 3, alone or as the language part of a multimodal Gemma 3."""
    body = model.model.language_model if hasattr(model.model, "language_model") else model.model
    config = model.config.get_text_config()
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=[_block(module, config) for module in body.layers],
        embedding=body.embed_tokens,
        embedding_scale=_embedding_scale(body, config),
        final_norm=shifted_rms_norm(body.norm),
        unembedding=read(model.lm_head),
        logit_cap=_logit_cap(model, config),
        context=config.max_position_embeddings,
    )


def _block(module: Any, config: Any) -> Block:
    return Block(
        module=module,
        attention_norm=shifted_rms_norm(module.input_layernorm),
        attention=module.self_attn,
        attention_post_norm=shifted_rms_norm(module.post_attention_layernorm),
        mlp_norm=shifted_rms_norm(module.pre_feedforward_layernorm),
        mlp=module.mlp,
        mlp_post_norm=shifted_rms_norm(module.post_feedforward_layernorm),
        **vars(separate(module.self_attn, config)),
    )


def _embedding_scale(body: Any, config: Any) -> float:
    """Root of the width, where the embedding module does not apply it itself.

    Up to transformers 4 Gemma 2 multiplied after the embedding, by the root rounded to its dtype.
    """
    if hasattr(body.embed_tokens, "embed_scale"):
        return 1.0
    return float(torch.tensor(config.hidden_size**0.5, dtype=body.embed_tokens.weight.dtype))


def _logit_cap(model: Any, config: Any) -> float | None:
    """Gemma 3 inherits the setting; its multimodal class does not apply it."""
    if model.config.model_type == "gemma3":
        return None
    cap: float | None = config.final_logit_softcapping
    return cap
