"""Multi-head latent attention: DeepSeek V2 and V3, MiniCPM 3, Youtu, GLM 4.7 and others.

Values are made of a few numbers a position that a norm stands behind; its denominator is held, as
every norm's is, and scales a position's values.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

from torch import Tensor

from replacement_models.around import Call, Factors, Watch
from replacement_models.errors import ModelError
from replacement_models.host import Block, Host
from replacement_models.hosts.llama import of_layers
from replacement_models.hosts.norms import multiplied, norm_of
from replacement_models.hosts.projections import Projections
from replacement_models.hosts.weights import linear_map


def deepseek(model: Any) -> Host:
    """Name the parts of a `DeepseekV3ForCausalLM` or another with its attention."""
    return of_layers(model, latent_block)


def minicpm3(model: Any) -> Host:
    """Name the parts of a `MiniCPM3ForCausalLM`, which scales what blocks write and its logits."""
    config = model.config
    factor = config.scale_depth / sqrt(config.num_hidden_layers)

    def block(module: Any, config: Any) -> Block:
        plain = latent_block(module, config)
        like = plain.output[0, 0]
        return replace(
            plain,
            attention_post_norm=multiplied(plain.attention, factor, like),
            mlp_post_norm=multiplied(plain.mlp, factor, like),
        )

    plain = of_layers(model, block)
    return replace(plain, unembedding=plain.unembedding / config.logits_scaling)


def latent_block(module: Any, config: Any) -> Block:
    """One decoder layer with latent attention, its other parts named as Llama's."""
    norm, attention = norm_of(module.input_layernorm), module.self_attn
    maps, watch = latent(attention, config.num_attention_heads, norm.weight)
    return Block(
        module=module,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm_of(module.post_attention_layernorm),
        mlp=module.mlp,
        watch=watch,
        **vars(maps),
    )


def latent(attention: Any, heads: int, like: Tensor) -> tuple[Projections, Watch]:
    """Value and output maps up to the denominator in the middle, and where to read that.

    Args:
        attention: the module.
        heads: how many.
        like: any vector of the residual stream.

    Raises:
        ModelError: the maps have biases where values cannot have them.
    """
    middle, rank = norm_of(attention.kv_a_layernorm), attention.kv_lora_rank
    down, down_bias = linear_map(attention.kv_a_proj_with_mqa, len(like), like)
    up, up_bias = linear_map(attention.kv_b_proj, rank, like)
    if up_bias is not None or middle.bias is not None:
        raise ModelError("latent attention with a bias behind its norm is not supported")
    width: int = attention.v_head_dim

    def picked(out: Tensor) -> Tensor:
        return out.unflatten(-1, (heads, -1))[..., -width:].flatten(-2)

    onto_values = middle.weight[:, None] * picked(up)
    mixing, output_bias = linear_map(attention.o_proj, heads * width, like)
    by_head = (down[:, :rank] @ onto_values).unflatten(-1, (heads, width))
    bias = None if down_bias is None else (down_bias[:rank] @ onto_values).view(heads, width)

    def factors(calls: Mapping[str, Call]) -> Factors:
        return Factors(values=1 / middle.scale(calls["middle"].inputs[0][0])[..., None])

    maps = Projections(
        value=by_head.permute(1, 2, 0).contiguous(),
        value_bias=bias,
        output=mixing.unflatten(0, (heads, -1)),
        output_bias=output_bias,
        values=lambda x: attention.kv_a_proj_with_mqa(x)[..., :rank] @ onto_values,
        project=attention.o_proj,
    )
    return maps, Watch(modules={"middle": middle.module}, factors=factors)
