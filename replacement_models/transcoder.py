"""Transcoders: sparse dictionaries that stand in for MLPs.

At layer l a transcoder reads the MLP's input x^l, `a^l = act(W_enc^l x^l + b_enc^l)`, and writes to
the outputs of its target layers, `ŷ^m = Σ_l W_dec^{l→m} a^l + b_dec^m [+ x^m W_skip^m]` (Ameisen
et al. 2025, "Circuit Tracing", section "Building an interpretable replacement model"). One weight
layout serves every kind, in memory and on disk: `W_enc[l] (F, D)`, `W_dec[l] (F, targets, D)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models.dictionaries.activation import Activation, ReLU
from replacement_models.errors import ModelError
from replacement_models.one_line import one_line
from replacement_models.sites import ReadPoint, Stage, WritePoint


class Decoder(Protocol):
    """Decoder rows of one layer, in memory or on disk."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(features, targets, d_model)."""

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows targets d_model"]:
        """The rows of `features`, in that order."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Decoder":
        """The same rows, delivered on `device` in `dtype`."""


@dataclass(frozen=True, eq=False)
class DenseDecoder:
    """Decoder rows held in memory."""

    weight: Float[Tensor, "features targets d_model"]

    __repr__ = one_line

    @property
    def shape(self) -> tuple[int, int, int]:
        """(features, targets, d_model)."""
        features, targets, d_model = self.weight.shape
        return features, targets, d_model

    def rows(self, features: Int[Tensor, " rows"]) -> Float[Tensor, "rows targets d_model"]:
        """The rows of `features`, in that order."""
        return self.weight[features.to(self.weight.device)]

    def to(self, device: torch.device, dtype: torch.dtype) -> "DenseDecoder":
        """The same rows on `device` in `dtype`."""
        return DenseDecoder(self.weight.to(device, dtype))


class Gate(Protocol):
    """A factor of a layer's activations that depends on its input and is frozen for a prompt."""

    def __call__(self, inputs: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch features"]:
        """The factors at `inputs`."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Gate":
        """The same gate on `device` in `dtype`."""


@dataclass(frozen=True, eq=False)
class TranscoderLayer:
    """Weights of one layer."""

    W_enc: Float[Tensor, "features d_model"]
    b_enc: Float[Tensor, " features"]
    decoder: Decoder
    b_dec: Float[Tensor, " d_model"]
    activation: Activation
    W_skip: Float[Tensor, "d_model d_model"] | None = None
    """Linear skip, applied as `x @ W_skip`."""
    gate: Gate | None = None
    """Multiplies what the activation lets through; only a model's own neurons have one."""
    read: ReadPoint | None = None
    """Where this layer reads, if not where the whole dictionary does."""
    write: WritePoint | None = None
    """What this layer's output is reconstructed as, if not as the whole dictionary's."""
    targets: tuple[int, ...] | None = None
    """Layers its decoder rows write to, where the dictionary's kind does not say."""
    stage: Stage | None = None
    """What an autoencoder reads and reconstructs, if not the MLP's output."""

    __repr__ = one_line

    @classmethod
    def empty(cls, like: Float[Tensor, " d_model"], targets: int) -> "TranscoderLayer":
        """No dictionary at a layer: no features, so that its whole MLP output is error.

        Args:
            like: any vector of the residual stream, for width, type and device.
            targets: layers that its features would write to.
        """
        width = len(like)
        return cls(
            W_enc=like.new_zeros(0, width),
            b_enc=like.new_zeros(0),
            decoder=DenseDecoder(like.new_zeros(0, targets, width)),
            b_dec=torch.zeros_like(like),
            activation=ReLU(),
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is no dictionary at this layer."""
        return len(self.W_enc) == 0

    def to(self, device: torch.device, dtype: torch.dtype) -> "TranscoderLayer":
        """The same layer on `device` in `dtype`."""
        return replace(
            self,
            W_enc=self.W_enc.to(device, dtype),
            b_enc=self.b_enc.to(device, dtype),
            decoder=self.decoder.to(device, dtype),
            b_dec=self.b_dec.to(device, dtype),
            activation=self.activation.to(device, dtype),
            W_skip=None if self.W_skip is None else self.W_skip.to(device, dtype),
            gate=None if self.gate is None else self.gate.to(device, dtype),
        )


class Transcoder(ABC):
    """Dictionaries for all layers of one model. The engine asks only what stands here."""

    kind: str

    def __init__(
        self,
        layers: Sequence[TranscoderLayer],
        *,
        read: ReadPoint = ReadPoint.NORMED,
        write: WritePoint = WritePoint.MLP_OUTPUT,
        model: str = "",
    ) -> None:
        """Take finished weights.

        Args:
            layers: one entry a layer of the model, each with its own number of features, empty
                ones where a layer has no dictionary.
            read: where the input is taken.
            write: what is reconstructed.
            model: name of the model the dictionary was trained on, for messages.

        Raises:
            ModelError: a weight's shape does not fit the others.
        """
        if not layers:
            raise ModelError("a transcoder needs at least one layer, got none")
        self.layers = tuple(layers)
        self.read = ReadPoint(read)
        self.write = WritePoint(write)
        self.model = model
        for index in range(len(self.layers)):
            self._check(index)

    def __repr__(self) -> str:
        count, present = len(self.layers), len(self.present)
        layers = f"{count} layers" if present == count else f"{present} of {count} layers"
        least = min((len(self.layers[at].W_enc) for at in self.present), default=0)
        features = f"{least} to {self.features}" if least < self.features else f"{least}"
        places = f"reads {self.read.value}, writes {self.write.value}"
        return f"{type(self).__name__}({layers} x {features} features, {places})"

    @property
    def d_model(self) -> int:
        """Width of the residual stream it was trained on."""
        return self.layers[0].W_enc.shape[1]

    @property
    def features(self) -> int:
        """Features a layer, of the widest layer."""
        return max(layer.W_enc.shape[0] for layer in self.layers)

    @cached_property
    def present(self) -> tuple[int, ...]:
        """Layers that have a dictionary, from below; the MLPs of all others are error."""
        return tuple(at for at, layer in enumerate(self.layers) if not layer.is_empty)

    def read_at(self, layer: int) -> ReadPoint:
        """Where the dictionary of one layer reads."""
        return self.layers[layer].read or self.read

    def write_at(self, layer: int) -> WritePoint:
        """What stands for one layer's MLP."""
        return self.layers[layer].write or self.write

    @abstractmethod
    def targets(self, layer: int) -> Sequence[int]:
        """Layers whose MLP output the features of `layer` write to, from below."""

    def encode(
        self, layer: int, inputs: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch features"], Float[Tensor, "*batch features"]]:
        """Pre-activations and activations of one layer, from its input at the read point."""
        weights = self.layers[layer]
        hidden = torch.nn.functional.linear(inputs, weights.W_enc, weights.b_enc)
        return hidden, self.activate(layer, hidden, inputs)

    def activate(
        self,
        layer: int,
        hidden: Float[Tensor, "*batch features"],
        inputs: Float[Tensor, "*batch d_model"],
    ) -> Float[Tensor, "*batch features"]:
        """Activations of one layer at pre-activations `hidden`, its gate held at `inputs`."""
        weights = self.layers[layer]
        active = weights.activation(hidden)
        return active if weights.gate is None else active * weights.gate(inputs)

    def encoder_rows(
        self, layer: int, features: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows d_model"]:
        """Encoder rows of `features`."""
        weight = self.layers[layer].W_enc
        return weight[features.to(weight.device)]

    def decoder_rows(
        self, layer: int, features: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows targets d_model"]:
        """What one unit of each of `features` writes to every target layer."""
        return self.layers[layer].decoder.rows(features)

    def skip(self, layer: int) -> Float[Tensor, "d_model d_model"] | None:
        """The linear skip of one layer, applied as `x @ W_skip`, or None."""
        return self.layers[layer].W_skip

    def decode(
        self,
        activations: Sequence[Float[Tensor, "*batch features"]],
        inputs: Sequence[Float[Tensor, "*batch d_model"]],
    ) -> list[Float[Tensor, "*batch d_model"]]:
        """Reconstructed MLP outputs of every layer.

        Args:
            activations: for every layer.
            inputs: read by the linear skip; for every layer.
        """
        outputs = []
        for layer, x in zip(self.layers, inputs, strict=True):
            skipped = 0 if layer.W_skip is None else x @ layer.W_skip
            outputs.append(layer.b_dec.expand_as(x) + skipped)
        for source in self.present:
            active = activations[source]
            used = active.reshape(-1, active.shape[-1]).any(0).nonzero()[:, 0]
            rows = self.decoder_rows(source, used)
            for slot, target in enumerate(self.targets(source)):
                written = active[..., used] @ rows[:, slot]
                outputs[target] = outputs[target] + written.to(outputs[target].device)
        return outputs

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Transcoder":
        """The same dictionary on `device` in `dtype`."""
        return self.beside([torch.device(device)], dtype)

    def beside(self, devices: Sequence[torch.device], dtype: torch.dtype) -> "Transcoder":
        """The same dictionary in `dtype`, every layer on its device, the last's for all above."""
        last = len(devices) - 1
        layers = [layer.to(devices[min(at, last)], dtype) for at, layer in enumerate(self.layers)]
        return type(self)(layers, read=self.read, write=self.write, model=self.model)

    def _check(self, index: int) -> None:
        layer, at = self.layers[index], f"{self.kind} transcoder, layer {index}"
        read = tuple(layer.W_enc.shape)
        if len(read) != 2 or (index > 0 and read[1] != self.d_model):
            width = "d_model" if index == 0 else str(self.d_model)
            raise ModelError(f"{at}: W_enc has shape {read}, expected (features, {width})")
        features, d_model = read
        targets = len(self.targets(index))
        expected = {
            "b_enc": (layer.b_enc.shape, (features,)),
            "W_dec": (layer.decoder.shape, (features, targets, d_model)),
            "b_dec": (layer.b_dec.shape, (d_model,)),
        }
        if layer.W_skip is not None:
            expected["W_skip"] = (layer.W_skip.shape, (d_model, d_model))
        for name, (got, want) in expected.items():
            if tuple(got) != want:
                raise ModelError(
                    f"{at}: {name} has shape {tuple(got)}, expected {want} "
                    f"to go with W_enc {read} and {len(self.layers)} layers"
                )
        try:
            layer.activation.check(features)
        except ModelError as error:
            raise ModelError(f"{at}: {error}") from error
