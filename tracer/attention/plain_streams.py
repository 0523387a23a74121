"""Streams pushed up and gradients pulled down the local model, in their plainest form.

Sources are followed forward as `sweep.py` follows rows backward, heads apart where they are asked
for. `loadings.py` does the same with joins and cuts; tests compare the two.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.sites import stream_number
from tracer.attention.sources import Sources
from tracer.attribution.local_model import LinearLayer, LocalModel
from tracer.attribution.targets import TargetRows


def streams(
    local: LocalModel, sources: Sources
) -> Iterator[Float[Tensor, "sources positions d_model"]]:
    """The stream entering each layer, L + 1 of them, by source."""
    stream = local.token_vectors.new_zeros(sources.count, *local.token_vectors.shape)
    sources.tokens.add_to(stream)
    yield stream
    places = [*(maps.device for maps in local.layers[1:]), local.layers[-1].device]
    for maps, writes, above in zip(local.layers, sources.layers, places, strict=True):
        stream = passed(maps, stream, attended(maps, stream))
        writes.add_to(stream)
        stream = stream.to(above)
        yield stream


def attended(
    maps: LinearLayer, stream: Float[Tensor, "rows positions d_model"], head: int | None = None
) -> Float[Tensor, "rows positions d_model"]:
    """What an attention layer, or one head of it, adds to a stream."""
    pattern = maps.transposed_pattern(0, stream.shape[1])
    mixed = mixed_values(pattern, maps.write_values(stream))
    if head is None:
        return maps.write_heads(mixed.flatten(2))
    gated = maps.read_heads(mixed.flatten(2), 0).view_as(mixed)
    return gated[:, :, head] @ outputs(maps, mixed.shape[2])[head]


def outputs(maps: LinearLayer, heads: int) -> Float[Tensor, "heads d_head d_model"]:
    """The output map by head."""
    return maps.output.unflatten(0, (heads, -1))


def mixed_values(
    pattern: Float[Tensor, "kv_heads keys group queries"],
    values: Float[Tensor, "rows keys kv_heads_d_head"],
) -> Float[Tensor, "rows queries heads d_head"]:
    """Values mixed by the pattern, head by head."""
    by_head = values.unflatten(-1, (len(pattern), -1))
    return torch.einsum("vkgq,nkvi->nqvgi", pattern, by_head).flatten(2, 3)


def passed(maps: LinearLayer, stream: Tensor, added: Tensor) -> Tensor:
    """The stream above a layer's linear skip, given what attention added to it."""
    if maps.skip is None:
        return stream + added
    read = stream if maps.parallel else stream + added
    return stream + added + (read @ maps.skip) * maps.skip_scale


def gradients(local: LocalModel, rows: TargetRows) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """What rows weigh the stream with, layer by layer from the top.

    Yields:
        Of each layer its number and three gradients (rows, positions, d_model): above the layer,
        of what attention adds, and of what stays in the stream beside attention. The last one
        holds the linear skip that the stream takes; in sequential blocks the two are one.
    """
    count, width = rows.vector.shape
    gradient = rows.vector.new_zeros(count, local.positions, width)
    for layer in range(len(local.layers) - 1, -1, -1):
        maps = local.layers[layer]
        gradient, rows = gradient.to(maps.device), rows.passing(maps.device)
        join(gradient, rows, stream_number(layer + 1))
        above = gradient
        stays = above
        if maps.skip is not None:
            stays = above + (above @ maps.skip.T) * maps.skip_scale
        if not maps.parallel:
            stays = stays.clone() if stays is above else stays
            join(stays, rows, stream_number(layer, between=True))
        read = above if maps.parallel else stays
        yield layer, above, read, stays
        gradient = stays + pulled_values(maps, head_gradients(maps, read))


def head_gradients(
    maps: LinearLayer, read: Float[Tensor, "rows positions d_model"]
) -> Float[Tensor, "rows queries heads_d_head"]:
    """Gradients of attention's output as the heads' outputs have them."""
    return maps.read_heads(read @ maps.output.T, 0)


def pulled_values(
    maps: LinearLayer, heads: Float[Tensor, "rows queries heads_d_head"]
) -> Float[Tensor, "rows keys d_model"]:
    """Gradients of the heads' outputs pulled back to the stream, by way of the values."""
    pattern = maps.transposed_pattern(0, heads.shape[1])
    kv_heads, _, group, _ = pattern.shape
    by_head = heads.unflatten(-1, (kv_heads, group, -1))
    mixed = torch.einsum("vkgq,rqvgi->rkvi", pattern, by_head)
    return maps.read_values(mixed.flatten(2), 0) @ maps.value.T


def join(gradient: Tensor, rows: TargetRows, site: int) -> None:
    """Add the vectors of the rows that read at a site, at their position."""
    here = (rows.site == site).nonzero()[0]
    gradient[here, rows.position[here]] += rows.vector[here]
