"""Between which two positions a head carried an edge: the cells of one head's loading."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.attention.plain_streams import gradients, head_gradients, streams
from tracer.attention.sources import sources_of
from tracer.attribution.local_model import LocalModel
from tracer.attribution.targets import TargetRows

HELD = 1 << 28
"""Bytes of streams and gradients that one batch may take."""


@dataclass(frozen=True, eq=False)
class Carried:
    """Loadings to look into: a source's column, a row, a layer and a head each."""

    column: Int[np.ndarray, " items"]
    row: Int[np.ndarray, " items"]
    layer: Int[np.ndarray, " items"]
    head: Int[np.ndarray, " items"]

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, items: np.ndarray) -> "Carried":
        return Carried(self.column[items], self.row[items], self.layer[items], self.head[items])


def cells(
    local: LocalModel, rows: TargetRows, wanted: Carried
) -> Iterator[tuple[int, Float[Tensor, "queries keys"]]]:
    """The cells of every loading, in any order: they add up to it.

    Yields:
        The number of an item and its matrix: what the head moved from keys to queries.
    """
    width = local.token_vectors[0].numel() * local.token_vectors.element_size()
    step = max(1, HELD // (4 * local.positions * width))
    order = np.lexsort((wanted.column, wanted.row))
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        for number, matrix in _batch(local, rows, wanted[chosen]):
            yield int(chosen[number]), matrix


def _batch(
    local: LocalModel, rows: TargetRows, items: Carried
) -> Iterator[tuple[int, Float[Tensor, "queries keys"]]]:
    columns, source = np.unique(items.column, return_inverse=True)
    numbers, target = np.unique(items.row, return_inverse=True)
    values: dict[int, Tensor] = {}
    by_layer = [np.flatnonzero(items.layer == layer) for layer in range(len(local.layers))]
    entering = streams(local, sources_of(local, columns))
    for maps, here, stream in zip(local.layers, by_layer, entering, strict=False):
        for item in here.tolist():
            values[item] = maps.write_values(stream[int(source[item])])
    for layer, _, read, _ in gradients(local, rows[numbers]):
        maps, inside_layer = local.layers[layer], by_layer[layer]
        if not len(inside_layer):
            continue
        pattern = maps.transposed_pattern(0, local.positions)
        kv_heads, _, group, _ = pattern.shape
        heads = head_gradients(maps, read[_these(target[inside_layer], read)])
        by_head = heads.unflatten(-1, (kv_heads * group, -1))
        for worth, item in zip(by_head, inside_layer.tolist(), strict=True):
            key_head, inside = divmod(int(items.head[item]), group)
            value = values[item].unflatten(-1, (kv_heads, -1))[:, key_head]
            products = worth[:, int(items.head[item])] @ value.T
            yield item, products * pattern[key_head, :, inside].T


def _these(numbers: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(numbers, device=like.device)


def strongest(
    matrix: Float[Tensor, "queries keys"], count: int
) -> Sequence[tuple[int, int, float]]:
    """The largest cells: query, key, loading."""
    flat = matrix.flatten()
    top = flat.abs().topk(min(count, len(flat))).indices.tolist()
    keys = matrix.shape[1]
    return [(at // keys, at % keys, float(flat[at])) for at in top if float(flat[at]) != 0]
