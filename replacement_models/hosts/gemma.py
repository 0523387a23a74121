"""Gemma: norm weights stored less one, scaled embeddings, soft caps.

Gemma 2 and 3 have norms before and after attention and MLP, Gemma 1 only before.
"""

from collections.abc import Callable
from typing import Any

import torch

from replacement_models.host import Block, Host
from replacement_models.hosts.llama import separate
from replacement_models.hosts.norms import shifted_rms_norm
from replacement_models.hosts.projections import unembedding


def gemma(model: Any) -> Host:
    """Name the parts of a Gemma 1, 2 or 3, or of the language part of a multimodal Gemma 3."""
    return gemma_host(model, _block)


def gemma_host(model: Any, block: Callable[[Any, Any], Block]) -> Host:
    """A host whose parts outside the blocks are named as in Gemma."""
    body = model.model.language_model if hasattr(model.model, "language_model") else model.model
    config = model.config.get_text_config()
    final_norm = shifted_rms_norm(body.norm)
    weight, bias = unembedding(model.lm_head, final_norm.weight)
    return Host(
        family=model.config.model_type,
        model=model,
        blocks=[block(module, config) for module in body.layers],
        embedding=body.embed_tokens,
        embedding_scale=_embedding_scale(body, config),
        final_norm=final_norm,
        unembedding=weight,
        unembedding_bias=bias,
        logit_cap=_logit_cap(model, config),
        context=config.max_position_embeddings,
    )


def _block(module: Any, config: Any) -> Block:
    norm = shifted_rms_norm(module.input_layernorm)
    parts = {"module": module, "attention": module.self_attn, "mlp": module.mlp}
    maps = vars(separate(module.self_attn, config, norm.weight))
    after_attention = shifted_rms_norm(module.post_attention_layernorm)
    if config.model_type == "gemma":
        return Block(attention_norm=norm, mlp_norm=after_attention, **parts, **maps)
    return Block(
        attention_norm=norm,
        attention_post_norm=after_attention,
        mlp_norm=shifted_rms_norm(module.pre_feedforward_layernorm),
        mlp_post_norm=shifted_rms_norm(module.post_feedforward_layernorm),
        **parts,
        **maps,
    )


def _embedding_scale(body: Any, config: Any) -> float:
    """Root of the width, where the embedding module does not apply it itself.

    Up to transformers 4 Gemma 2 multiplied after the embedding, by the root rounded to its dtype.
    """
    if hasattr(body.embed_tokens, "embed_scale"):
        return 1.0
    return float(torch.tensor(config.hidden_size**0.5, dtype=body.embed_tokens.weight.dtype))


def _logit_cap(model: Any, config: Any) -> float | None:
    """Gemma 1 has none; the multimodal class of Gemma 3 does not apply the one it is given."""
    if model.config.model_type == "gemma3":
        return None
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return cap
