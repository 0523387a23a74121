"""Which layers read, and which they write to: what makes all kinds of dictionaries one loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from replacement_models.errors import ModelError
from replacement_models.host import Block
from replacement_models.training.config import DictionaryConfig


@dataclass(frozen=True)
class Wiring:
    """Layers with a dictionary, from below; each reads at its own and writes to some."""

    layers: tuple[int, ...]
    span: int
    """Layers with a dictionary that one writes to, its own included, as far as there are any."""

    @classmethod
    def of(cls, config: DictionaryConfig, count: int) -> "Wiring":
        """Of a model of `count` layers.

        Raises:
            ModelError: no such layer, or one is named twice; L0 is given for other layers.
        """
        layers = tuple(range(count)) if config.layers is None else config.layers
        wrong = [layer for layer in layers if layer >= count]
        if wrong:
            raise config.wrong("layers", f"layers from 0 to {count - 1}", wrong[0])
        if not layers or len(set(layers)) < len(layers):
            raise config.wrong("layers", "some layers, each once", layers)
        if len(config.l0) not in (1, len(layers)):
            raise config.wrong("l0", f"one number, or one for each of {len(layers)}", config.l0)
        widths = config.features_of(len(layers))
        if len(widths) != len(layers):
            raise config.wrong("widths", f"one number for each of {len(layers)}", widths)
        for width, most in zip(widths, config.l0 * len(layers), strict=False):
            if most >= width:
                raise config.wrong("l0", f"less than the {width} features of its layer", most)
        cross = config.kind == "cross_layer"
        return cls(tuple(sorted(layers)), (config.span or len(layers)) if cross else 1)

    def slots(self, source: int) -> range:
        """Numbers, among `layers`, of those that number `source` writes to."""
        return range(source, min(source + self.span, len(self.layers)))

    @cached_property
    def islands(self) -> tuple[range, ...]:
        """Runs of layers that share no loss with others: each can go its way back alone."""
        count = len(self.layers)
        return (range(count),) if self.span > 1 else tuple(range(at, at + 1) for at in range(count))

    def l0(self, wanted: Sequence[float]) -> tuple[float, ...]:
        """Active features a token that each layer is to have."""
        return tuple(wanted) if len(wanted) == len(self.layers) else (wanted[0],) * len(self.layers)


def check_host(config: DictionaryConfig, blocks: Sequence[Block]) -> None:
    """Refuse a place that a model does not have.

    Raises:
        ModelError: the stream between attention and MLP of parallel blocks, or of shared ones.
    """
    if config.kind != "sae" or config.site != "resid_mid":
        return
    if any(block.parallel or block.aside for block in blocks):
        raise ModelError(
            "dictionary.site: expected mlp_out, attn_out or resid_pre, since in this model no "
            "stream lies between attention and MLP, got 'resid_mid'"
        )
