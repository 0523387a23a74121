"""What heads do by their weights alone: composition, and virtual weights through one head.

Norm weights are folded in and denominators left out, as in features/virtual_weights.py. Queries and
keys come from the model's own module at two positions, so rotary positions are as the model turns
them: at offset 0 they cancel where all of a head is turned.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", sections on
composition and virtual weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.folding import mlp_post_norm, read_back, written
from replacement_models.process import one_call
from replacement_models.sites import ReadPoint
from tracer.attention.explained import chosen_head, chosen_layer
from tracer.attention.queries_keys import check_bare, query_key_maps
from tracer.errors import TraceError

KINDS = ("q", "k", "v")
SIDES = ("ov", "query", "key")


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """The four maps of every head of a layer, in units of the residual stream."""

    query: Float[Tensor, "heads d_head d_model"]
    key: Float[Tensor, "heads d_head d_model"]
    value: Float[Tensor, "heads d_head d_model"]
    output: Float[Tensor, "heads d_head d_model"]
    scaling: float


def head_maps(model: ReplacementModel, layer: int, offset: int = 0) -> HeadMaps:
    """Maps of one layer, the query so many positions after the key."""
    check_bare(model, layer)
    block = model.host.blocks[layer]
    heads, kv_heads = len(block.output), len(block.value)
    recording = model.record([0] * (offset + 1), last_logits=True)
    scales = [frozen.attention_scale for frozen in recording.layers]
    place = query_key_maps(model, recording.tokens, [layer], recording.residuals, scales)[layer]
    reached = place.scores()
    queries, keys = reached.scores.queries.detach(), reached.scores.keys.detach()
    width = queries.shape[-1]
    one = torch.eye(width, device=queries.device, dtype=queries.dtype)

    def pulled(head: int, query: bool) -> Tensor:
        given = (queries if query else keys).new_zeros(width, *(queries if query else keys).shape)
        given[:, head, offset if query else 0] = one
        found = reached.pulled(given, None) if query else reached.pulled(None, given)
        return read_back(found[:, offset if query else 0], block.attention_norm, ReadPoint.NORMED)

    group = heads // kv_heads
    value = read_back(block.value, block.attention_norm, ReadPoint.NORMED)
    return HeadMaps(
        query=torch.stack([pulled(head, True) for head in range(heads)]),
        key=torch.stack([pulled(head, False) for head in range(kv_heads)]).repeat_interleave(
            group, 0
        ),
        value=value.repeat_interleave(group, 0),
        output=written(block.output, block.attention_post_norm),
        scaling=reached.scores.scaling,
    )


@one_call()
@torch.no_grad()
def head_composition(model: ReplacementModel) -> pa.Table:
    """How much of what each head writes every later head reads as query, key and value.

    The norm of the product of two heads' maps over the product of their norms, between 0 and 1;
    random maps have about one over the root of the stream's width. Of a hybrid those of its plain
    softmax layers.

    Args:
        model: the model; its dictionary takes no part.

    Returns:
        One row a pair and kind: layer and head that write (`from_layer`, `from_head`), layer and
        head that read (`to_layer`, `to_head`), kind ("q", "k", "v"), score. Strongest first.

    Raises:
        TraceError: no layer is plain softmax attention, or one's scores are formed in a way that is
            not known.
    """
    blocks = model.host.blocks
    plain = [layer for layer, block in enumerate(blocks) if block.plain]
    every = {layer: head_maps(model, layer) for layer in plain or range(len(blocks))}
    rows = [row for pair in _layer_pairs(every) for row in pair]
    rows.sort(key=lambda row: -row[5])
    names = ("from_layer", "from_head", "to_layer", "to_head", "kind", "score")
    kinds = (pa.int32(), pa.int32(), pa.int32(), pa.int32(), pa.string(), pa.float64())
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pa.table(
        {
            name: pa.array(list(part), kind)
            for name, kind, part in zip(names, kinds, columns, strict=True)
        }
    )


def _layer_pairs(
    every: Mapping[int, HeadMaps],
) -> Iterator[list[tuple[int, int, int, int, str, float]]]:
    for low, lower in every.items():
        for high, upper in every.items():
            if high <= low:
                continue
            for kind, outer, inner in (
                ("q", upper.key, upper.query),
                ("k", upper.query, upper.key),
                ("v", upper.output, upper.value),
            ):
                there = lower.output.device
                score = _composed(lower, outer.to(there), inner.to(there))
                yield [
                    (low, a, high, b, kind, float(score[a, b]))
                    for a in range(len(lower.output))
                    for b in range(len(inner))
                ]


def _composed(
    lower: HeadMaps,
    outer: Float[Tensor, "above d_head d_model"],
    inner: Float[Tensor, "above d_head d_model"],
) -> Float[Tensor, "below above"]:
    """|outerᵀ inner · outputᵀ value| over |outerᵀ inner| |outputᵀ value|, by small matrices."""
    gram_value = lower.value @ lower.value.transpose(1, 2)
    gram_output = lower.output @ lower.output.transpose(1, 2)
    gram_outer = outer @ outer.transpose(1, 2)
    gram_inner = inner @ inner.transpose(1, 2)
    met = torch.einsum("bid,ajd->abij", inner, lower.output)
    product = torch.einsum("abij,ajk,ablk,bil->ab", met, gram_value, met, gram_outer)
    below = torch.einsum("aij,aji->a", gram_output, gram_value)
    above = torch.einsum("bij,bji->b", gram_outer, gram_inner)
    return (product.clamp(min=0) / (below[:, None] * above)).sqrt()


@one_call()
@torch.no_grad()
def head_virtual_weights(
    model: ReplacementModel,
    layer: int,
    head: int,
    feature: tuple[int, int],
    *,
    side: str = "ov",
    offset: int = 0,
    top: int = 20,
) -> pa.Table:
    """The features that one head connects a feature to, by weights alone.

    Args:
        model: the model and its dictionary.
        layer: of the head.
        head: its number in the layer.
        feature: (layer, feature). With side "ov" below the head, where it is what the head moves,
            or above, where it is what reads it; otherwise below.
        side: "ov"; "query" where the feature is in what looks, "key" where in what is looked at.
        offset: positions from the key to the query, for "query" and "key".
        top: so many features, the largest weights first.

    Returns:
        layer, feature, weight: what one unit of the one feature is in the other's pre-activation
        ("ov") or what one unit of both adds to the score ("query", "key"); norm denominators left
        out.

    Raises:
        TraceError: a layer, head, feature or side that does not exist, or nothing to connect to.
    """
    chosen_head(model, chosen_layer(model, layer), head)
    _check_feature(model, feature)
    if side not in SIDES:
        raise TraceError(f"side is {side!r}, expected one of {', '.join(SIDES)}")
    if top < 1 or offset < 0:
        raise TraceError(f"top is {top} and offset {offset}, expected at least 1 and 0")
    maps = head_maps(model, layer, offset)
    first_reader = layer + 1 if model.host.blocks[layer].parallel else layer
    if side == "ov" and feature[0] >= first_reader:
        read = _read(model, feature[0])[feature[1]].to(maps.output.device)
        row = maps.value[head].T @ (maps.output[head] @ read)
        others = _onto(model, layer, row)
    elif feature[0] >= layer:
        raise TraceError(
            f"feature {feature[0]}/{feature[1]} stands above head {layer}.{head}, which can read "
            "only what is written below it"
        )
    else:
        own = _written_below(model, feature[0], layer)[feature[1]].to(maps.output.device)
        others = _others(model, maps, (layer, head, side), own, first_reader)
    return _strongest(others, top)


def _others(
    model: ReplacementModel,
    maps: HeadMaps,
    place: tuple[int, int, str],
    own: Float[Tensor, " d_model"],
    first_reader: int,
) -> list[tuple[int, Float[Tensor, " features"]]]:
    """Weights of all features on the other side of one that stands below the head."""
    layer, head, side = place
    if side == "ov":
        moved = maps.output[head].T @ (maps.value[head] @ own)
        readers = range(first_reader, len(model.host.blocks))
        weights = ((reader, _read(model, reader)) for reader in readers)
        return [(reader, read @ moved.to(read.device)) for reader, read in weights]
    mine, other = (
        (maps.query[head], maps.key[head])
        if side == "query"
        else (maps.key[head], maps.query[head])
    )
    row = maps.scaling * (other.T @ (mine @ own))
    return _onto(model, layer, row)


def _onto(
    model: ReplacementModel, layer: int, row: Float[Tensor, " d_model"]
) -> list[tuple[int, Float[Tensor, " features"]]]:
    """What is written below a layer, feature by feature, along a row of the stream."""
    weights = ((below, _written_below(model, below, layer)) for below in range(layer))
    return [(below, write @ row.to(write.device)) for below, write in weights]


def _check_feature(model: ReplacementModel, feature: tuple[int, int]) -> None:
    layer, number = feature
    chosen_layer(model, layer)
    features = len(model.transcoder.layers[layer].W_enc)
    if not 0 <= number < features:
        raise TraceError(
            f"feature {layer}/{number} does not exist: layer {layer} has {features} features"
        )


def _read(model: ReplacementModel, layer: int) -> Float[Tensor, "features d_model"]:
    """What the features of one layer read of the stream."""
    every = torch.arange(len(model.transcoder.layers[layer].W_enc), device=model.device)
    rows = model.transcoder.encoder_rows(layer, every)
    return read_back(rows, model.host.blocks[layer].mlp_norm, model.transcoder.read_at(layer))


def _written_below(
    model: ReplacementModel, layer: int, end: int
) -> Float[Tensor, "features d_model"]:
    """What one unit of every feature of one layer writes before attention of layer `end` reads."""
    transcoder = model.transcoder
    every = torch.arange(len(transcoder.layers[layer].W_enc), device=model.device)
    rows = transcoder.decoder_rows(layer, every)
    total = torch.zeros_like(rows[:, 0])
    for slot, target in enumerate(transcoder.targets(layer)):
        if target < end:
            norm = mlp_post_norm(model.host.blocks[target], transcoder.write_at(target))
            total += written(rows[:, slot], norm)
    return total


def _strongest(others: list[tuple[int, Float[Tensor, " features"]]], top: int) -> pa.Table:
    if not others:
        raise TraceError("no feature stands on the head's other side")
    weight = torch.cat([value.cpu() for _, value in others])
    layer = torch.cat([torch.full((len(value),), one) for one, value in others])
    number = torch.cat([torch.arange(len(value)) for _, value in others])
    best = weight.abs().topk(min(top, len(weight))).indices
    return pa.table(
        {
            "layer": pa.array(layer[best].tolist(), pa.int32()),
            "feature": pa.array(number[best].tolist(), pa.int64()),
            "weight": pa.array(weight[best].tolist(), pa.float64()),
        }
    )
