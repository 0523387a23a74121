"""What a format has a place for, checked before anything is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replacement_models.dictionaries.activation import JumpReLU
from replacement_models.errors import ModelError
from replacement_models.formats.storage.tensors import all_rows
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.transcoder import Transcoder


@dataclass(frozen=True)
class Limits:
    """Kinds, activations and places that a format can say."""

    format: str
    kinds: tuple[type[Transcoder], ...]
    activations: tuple[type[Any], ...]
    read: tuple[ReadPoint, ...] = tuple(ReadPoint)
    write: tuple[WritePoint, ...] = tuple(WritePoint)
    skip: bool = False
    gaps: bool = False
    """Whether layers may be without a dictionary."""
    uniform: bool = False
    """Whether every layer must have as many features and the same activation."""

    def check(self, transcoder: Transcoder) -> None:
        """Refuse what the format cannot hold.

        Raises:
            ModelError: naming it and what the format can hold.
        """
        self._one_of("kind", type(transcoder), self.kinds, lambda kind: kind.kind)
        self._one_of("read point", transcoder.read, self.read, lambda point: point.value)
        self._one_of("write point", transcoder.write, self.write, lambda point: point.value)
        for index, layer in enumerate(transcoder.layers):
            if layer.is_empty and self.gaps:
                continue
            if layer.is_empty:
                raise ModelError(
                    f"{self.format} has no place for a layer without a dictionary, as layer {index}"
                )
            named = f"activation of layer {index}"
            self._one_of(named, type(layer.activation), self.activations, lambda kind: kind.name)
            act = layer.activation
            if isinstance(act, JumpReLU) and bool((act.threshold < 0).any()):
                raise ModelError(
                    f"{self.format} lets nothing below 0 pass, but layer {index} has thresholds "
                    "below 0"
                )
            if layer.W_skip is not None and not self.skip:
                raise ModelError(f"{self.format} has no place for a linear skip")
        shapes = {
            (len(layer.W_enc), type(layer.activation), getattr(layer.activation, "k", None))
            for layer in transcoder.layers
        }
        if self.uniform and len(shapes) > 1:
            raise ModelError(
                f"{self.format} has one width and one activation for all layers; these differ"
            )

    def _one_of(
        self, what: str, got: Any, known: tuple[Any, ...], name: Callable[[Any], str]
    ) -> None:
        if got not in known:
            raise ModelError(
                f"{self.format} cannot hold {what} {name(got)}, only "
                f"{', '.join(name(one) for one in known)}"
            )


def by_target(transcoder: Transcoder, target: int) -> Tensor:
    """(sources, features, d_model): what every layer that writes to `target` writes there."""
    sources = [
        index for index in range(len(transcoder.layers)) if target in transcoder.targets(index)
    ]
    return torch.stack(
        [all_rows(transcoder.layers[source].decoder)[:, target - source] for source in sources]
    )


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, dense, none sharing memory."""
    return {key: value.contiguous().cpu().clone() for key, value in tensors.items()}
