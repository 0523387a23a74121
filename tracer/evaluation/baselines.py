"""What a dictionary has to beat: the best affine map, its own linear skip, and the mean.

All three are dictionaries without a feature that fires, so that they stand in for MLPs, and are
traced, by the same code. The affine map of a layer is fitted in closed form (weighted ridge
regression, the penalty chosen on tokens held out of the fit) on text that nothing is measured on,
once with every token alike and once with massive outputs weighing less.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import PerLayerTranscoder, ReLU, ReplacementModel, TranscoderLayer
from replacement_models.training.ridge import affine
from replacement_models.training.scales import Scale
from replacement_models.transcoder import DenseDecoder

OUTLIERS = 20.0
"""Tokens of more than so many times the median square norm weigh less."""
A_WIDTH = 8
"""Tokens an affine map is fitted on, as a multiple of its inputs."""
MOST = 16_384
"""Never more than so many."""
HELD = 1 << 30
"""Bytes of activations held at once."""


@dataclass(frozen=True, eq=False)
class Fit:
    """What was fitted for one layer."""

    mean: Float[Tensor, " d_model"]
    """Of its output, massive ones weighing less."""
    maps: tuple[tuple[Float[Tensor, "d_in d_model"], Float[Tensor, " d_model"]], ...]
    """x @ A + b, fitted with every token alike and with massive outputs weighing less; none for an
    autoencoder, which such a map would copy."""

    def guesses(self, inputs: Float[Tensor, "tokens d_in"]) -> list[Float[Tensor, "tokens d"]]:
        """What each of the maps makes of inputs."""
        return [inputs @ matrix.to(inputs) + bias.to(inputs) for matrix, bias in self.maps]


def wanted_tokens(width: int) -> int:
    """Tokens to fit an affine map of so many inputs on."""
    return min(MOST, A_WIDTH * width)


def layers_at_once(width: int, tokens: int) -> int:
    """Layers whose inputs and outputs are held together."""
    return max(1, HELD // (8 * width * tokens))


def fit(
    inputs: Float[Tensor, "tokens d_in"], outputs: Float[Tensor, "tokens d_model"], maps: bool
) -> Fit:
    """Mean and affine maps of one layer, in float64."""
    x, y = inputs.double(), outputs.double()
    scale = Scale.of(y, OUTLIERS)
    weight = scale.weight(y, OUTLIERS)
    weights = (torch.ones_like(weight), weight) if maps else ()
    return Fit(scale.mean, tuple(affine(x, y, one) for one in weights))


def standing(
    model: ReplacementModel, layers: Sequence[int], parts: Iterable[tuple[Tensor | None, Tensor]]
) -> ReplacementModel:
    """The model with a dictionary of no feature that fires.

    Args:
        model: where its own dictionary reads and writes is where this one does.
        layers: those replaced.
        parts: linear map (or None) and bias of each.
    """
    own, found = model.transcoder, []
    given = dict(zip(layers, parts, strict=True))
    for layer in range(len(model.host.blocks)):
        like = own.layers[layer].b_dec
        bare = TranscoderLayer.empty(like, 1)
        if layer in given:
            skip, bias = given[layer]
            bare = _silent(bare, like)
            skip = None if skip is None else skip.to(like)
            bare = replace(bare, W_skip=skip, b_dec=bias.to(like))
        found.append(replace(bare, read=own.read_at(layer), write=own.write_at(layer)))
    transcoder = PerLayerTranscoder(found, read=own.read, write=own.write, model=own.model)
    return replace(model, transcoder=transcoder, transcoder_name="", transcoder_hash="",
                   labels={}, dictionary_folder=None)  # fmt: skip


def _silent(layer: TranscoderLayer, like: Float[Tensor, " d_model"]) -> TranscoderLayer:
    """One feature that never fires, so that there is a dictionary."""
    return replace(
        layer,
        W_enc=like.new_zeros(1, len(like)),
        b_enc=like.new_full((1,), -1.0),
        decoder=DenseDecoder(like.new_zeros(1, 1, len(like))),
        activation=ReLU(),
    )
