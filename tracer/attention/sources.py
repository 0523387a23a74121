"""What chosen sources write to the residual stream, layer by layer, as a local model has it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.attribution.indices import on_device
from tracer.attribution.local_model import LocalModel
from tracer.attribution.writers import Writers


@dataclass(frozen=True, eq=False)
class Writes:
    """What some sources write at one layer, each at one position (or at several, a row each)."""

    source: Int[np.ndarray, " writes"]
    position: Int[np.ndarray, " writes"]
    vector: Float[Tensor, "writes d_model"]

    def __len__(self) -> int:
        return len(self.source)

    def of(self, numbers: Int[np.ndarray, " numbers"]) -> "Writes":
        """Those of some sources, by their places among `numbers`, which ascend."""
        place = np.searchsorted(numbers, self.source)
        mine = np.flatnonzero(np.append(numbers, -1)[place] == self.source)
        vector = self.vector[on_device(mine, self.vector.device)]
        return Writes(place[mine], self.position[mine], vector)

    def add_to(self, stream: Float[Tensor, "sources positions d_model"], begin: int = 0) -> None:
        """Add every write to the stream of its source, which starts at position `begin`."""
        if len(self):
            device = stream.device
            at = (on_device(self.source, device), on_device(self.position - begin, device))
            stream.index_put_(at, self.vector, accumulate=True)


@dataclass(frozen=True, eq=False)
class Sources:
    """Chosen sources: what each writes below the bottom layer, and at every layer."""

    count: int
    tokens: Writes
    """What stands in the stream entering layer 0."""
    layers: Sequence[Writes]

    def of(self, numbers: Int[np.ndarray, " numbers"]) -> "Sources":
        """Some of them, by ascending numbers."""
        layers = [writes.of(numbers) for writes in self.layers]
        return Sources(len(numbers), self.tokens.of(numbers), layers)

    def writes(self, layer: int) -> Writes:
        """What stands written at a layer, or (-1) below the bottom one."""
        return self.tokens if layer < 0 else self.layers[layer]

    @property
    def first(self) -> Int[np.ndarray, " sources"]:
        """The layer at which each is first written, -1 for below the bottom one."""
        found = np.full(self.count, len(self.layers))
        for layer in range(len(self.layers) - 1, -1, -1):
            found[self.layers[layer].source] = layer
        found[self.tokens.source] = -1
        return found


def sources_of(local: LocalModel, columns: Int[np.ndarray, " sources"]) -> Sources:
    """Sources by their columns, each as strongly as it fired."""
    number, position = np.arange(len(columns)), positions_of(local, columns)
    token = np.flatnonzero(columns >= local.token_column(0))
    tokens = local.token_vectors[on_device(position[token], local.token_vectors.device)]
    return Sources(
        count=len(columns),
        tokens=Writes(number[token], position[token], tokens),
        layers=[
            _writes(local, layer, columns, position, number) for layer in range(len(local.layers))
        ],
    )


def positions_of(
    local: LocalModel, columns: Int[np.ndarray, " sources"]
) -> Int[np.ndarray, " sources"]:
    """Where the sources of some columns stand."""
    features = len(local.features)
    found = (columns - features) % local.positions
    is_feature = columns < features
    found[is_feature] = local.table[1][columns[is_feature]]
    return found


def _writes(
    local: LocalModel,
    layer: int,
    columns: Int[np.ndarray, " sources"],
    position: Int[np.ndarray, " sources"],
    number: Int[np.ndarray, " sources"],
) -> Writes:
    writers = local.writers[layer]
    offset = columns - np.asarray(writers.first)[position]
    inside = (offset >= 0) & (offset < _feature_counts(writers)[position])
    features = np.flatnonzero(inside & (columns < len(local.features)))
    error = columns - local.error_column(layer, 0)
    errors = np.flatnonzero((error >= 0) & (error < local.positions))
    start = np.asarray(writers.start)
    rows = np.concatenate(
        [
            start[position[features]] + offset[features],
            start[position[errors] + 1] - writers.others,
        ]
    )
    vector = writers.vectors[on_device(rows, writers.vectors.device)]
    active = local.features.activation
    fired = active[on_device(columns[features], active.device)].to(vector.device)
    vector[: len(features)] *= fired[:, None]
    chosen = np.concatenate([features, errors])
    return Writes(number[chosen], position[chosen], vector)


def _feature_counts(writers: Writers) -> Int[np.ndarray, " positions"]:
    return np.diff(np.asarray(writers.start)) - writers.others


LEAVES = ("positions", "biases", "skipped")
"""Parts of the constant: learned positions, biases of all kinds, what MLPs write at positions whose
features and errors are no nodes."""


def constant_sources(local: LocalModel) -> Sources:
    """The constants as three sources, in the order of LEAVES; `local` must be a plain one."""
    every = np.arange(local.positions)
    learned = local.position_vectors
    none = local.token_vectors[:0]
    tokens = (
        Writes(every[:0], every[:0], none)
        if learned is None
        else Writes(np.zeros_like(every), every, learned)
    )
    layers = []
    for layer, writers in enumerate(local.writers):
        ends = on_device(np.asarray(writers.start[1:]), writers.vectors.device)
        constant = writers.vectors[ends - writers.others + 1]
        carried = _attention_constants(local, layer)
        leaf = np.where(every < local.skip_positions, 2, 1)
        vector = torch.cat([constant - carried, carried])
        whose, where = np.concatenate([leaf, np.ones_like(leaf)]), np.tile(every, 2)
        layers.append(Writes(whose, where, vector))
    return Sources(len(LEAVES), tokens, layers)


def _attention_constants(local: LocalModel, layer: int) -> Float[Tensor, "positions d_model"]:
    """What a layer's attention adds of its own, and the linear skip of it, above the layer."""
    maps = local.layers[layer]
    own = maps.carried[:, -1]
    if maps.skip is None or maps.parallel:
        return own
    return own + (own @ maps.skip) * maps.skip_scale
