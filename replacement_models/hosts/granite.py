"""Granite, its mixtures of experts, HyperCLOVA X: Llama with multipliers on the way."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from replacement_models.errors import ModelError
from replacement_models.host import Block, Host
from replacement_models.hosts.llama import llama_block, of_layers
from replacement_models.hosts.norms import multiplied, norm_of


def granite(model: Any) -> Host:
    """Name the parts of a Granite, with or without experts; logits are divided by their scaling."""
    return _scaled(of_layers(model, _block), 1 / model.config.logits_scaling)


def hyperclovax(model: Any) -> Host:
    """Name the parts of a `HyperCLOVAXForCausalLM`, whose logits are multiplied.

    Raises:
        ModelError: what passes a post-norm is multiplied too.
    """
    if model.config.use_post_norm and model.config.residual_multiplier != 1:
        raise ModelError("this HyperCLOVA X multiplies what its post-norms return; not supported")
    return _scaled(of_layers(model, _hyperclovax_block), model.config.logits_scaling)


def _scaled(plain: Host, logits: float) -> Host:
    config: Any = plain.model.config
    unembedding = plain.unembedding * logits
    return replace(plain, embedding_scale=config.embedding_multiplier, unembedding=unembedding)


def _block(module: Any, config: Any) -> Block:
    plain = _with_shared(module, llama_block(module, config))
    factor, like = config.residual_multiplier, plain.output[0, 0]
    return replace(
        plain,
        attention_post_norm=multiplied(plain.attention, factor, like),
        mlp_post_norm=multiplied(plain.mlp, factor, like),
    )


def _with_shared(module: Any, plain: Block) -> Block:
    """An expert that every token visits is a module beside the others."""
    shared = getattr(module, "shared_mlp", None)
    if shared is None:
        return plain
    routed: Any = plain.mlp
    beside = replace(plain, mlp_beside=routed, mlp_out=shared)
    if not hasattr(routed, "experts"):  # transformers 4.57 has experts in maps of their own kind
        return beside
    maps = SimpleNamespace(experts=routed.experts, router=routed.router, shared_mlp=shared)
    return replace(beside, mlp_maps=maps)


def _hyperclovax_block(module: Any, config: Any) -> Block:
    if not config.use_post_norm:
        return _block(module, config)
    return replace(
        llama_block(module, config),
        attention_post_norm=norm_of(module.post_norm1),
        mlp_post_norm=norm_of(module.post_norm2),
    )
