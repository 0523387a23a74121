"""The end of a run: thresholds that meet L0, what the dictionary is worth, and its files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models.errors import ModelError
from replacement_models.fidelity import fidelity
from replacement_models.formats.files import save_transcoder
from replacement_models.replacement import ReplacementModel
from replacement_models.training import ridge
from replacement_models.training.config import TrainConfig
from replacement_models.training.fold import folded
from replacement_models.training.scales import Scale
from replacement_models.training.trainee import Batch, Trainee
from replacement_models.training.wiring import Wiring
from replacement_models.transcoder import Transcoder

AT_ONCE = 1024
"""Tokens encoded together."""


@dataclass(frozen=True)
class Worth:
    """A finished dictionary on held-out tokens; a number a layer trained."""

    error: tuple[float, ...]
    """Squared error over the variance, every token alike."""
    error_weighted: tuple[float, ...]
    """The same with outliers weighing less, as it was trained."""
    affine: tuple[float, ...]
    """The weighted error of the best affine map alone: what features have to beat."""
    l0: tuple[float, ...]
    """Active features a token."""
    dead: tuple[float, ...]
    """Share of features that fire on none of the tokens."""
    held_tokens: int


@torch.no_grad()
def worth(
    transcoder: Transcoder,
    layers: Sequence[int],
    writes: Sequence[Scale],
    held: Batch,
    outliers: float,
    affine: bool = True,
) -> Worth:
    """Measure a dictionary as it will be written.

    Args:
        transcoder: finished.
        layers: those trained.
        writes: scales of outputs, which give tokens their weights.
        held: raw activations of held-out tokens.
        outliers: `loss.outliers`.
        affine: fit the best affine maps too; otherwise their errors are left out.
    """
    rows = [len(transcoder.layers[layer].W_enc) for layer in layers]
    fired = [torch.zeros(count, device=held.inputs[0].device) for count in rows]
    missed = [[0.0, 0.0, 0.0] for _ in layers]
    for begin in range(0, len(held), AT_ONCE):
        part = held.rows(slice(begin, begin + AT_ONCE))
        guesses = _guesses(transcoder, layers, part, fired)
        for at, (guess, scale) in enumerate(zip(guesses, writes, strict=True)):
            squares = (part.outputs[at] - guess).square().sum(1)
            weight = scale.weight(part.outputs[at], outliers)
            missed[at][0] += float(squares.sum())
            missed[at][1] += float((weight * squares).sum())
            missed[at][2] += float(weight.sum())
    spread = [float((y - y.mean(0)).square().sum()) for y in held.outputs]
    unit = [float(scale.deviation) ** 2 * held.outputs[0].shape[1] for scale in writes]
    return Worth(
        error=tuple(one[0] / total for one, total in zip(missed, spread, strict=True)),
        error_weighted=tuple(one[1] / (one[2] * u) for one, u in zip(missed, unit, strict=True)),
        affine=tuple(_affine_errors(held, writes, outliers)) if affine else (),
        l0=tuple(float(one.sum()) / len(held) for one in fired),
        dead=tuple(float((one == 0).float().mean()) for one in fired),
        held_tokens=len(held),
    )


def check_format(config: TrainConfig, wiring: Wiring, layers: int) -> None:
    """Refuse what `run.format` has no place for before it is trained.

    Args:
        config: of the run.
        wiring: its layers.
        layers: of the model.

    Raises:
        ModelError: a small dictionary of the same kind cannot be written, or none of layers that
            differ in width, where `run.drop_below` makes them differ.
    """
    widths = config.dictionary.features_of(len(wiring.layers))
    order = [sorted({*widths}).index(width) for width in widths]
    try:
        _try_format(config, wiring, layers, order)
    except ModelError as error:
        raise ModelError(f"run.format: {error}") from error
    if config.run.drop_below:
        try:
            _try_format(config, wiring, layers, range(len(widths)))
        except ModelError as error:
            said = f"0, since {config.run.format} has no place for layers that differ in width"
            raise config.run.wrong("drop_below", said, config.run.drop_below) from error


def _try_format(config: TrainConfig, wiring: Wiring, layers: int, more: Sequence[int]) -> None:
    """Write a small dictionary in a run's format, some layers with more features than L0 needs."""
    chosen, scales = config.dictionary, [Scale.of(torch.eye(2), 1.0)] * len(wiring.layers)
    widths = tuple(int(max(chosen.l0)) + 1 + count for count in more)
    small = replace(chosen, features=max(widths), widths=widths, prefixes=())
    trainee = Trainee(replace(config, dictionary=small), wiring, scales, scales)
    with TemporaryDirectory() as folder:
        save_transcoder(folded(trainee, layers, ""), Path(folder) / "small", config.run.format)


def _guesses(
    transcoder: Transcoder, layers: Sequence[int], part: Batch, fired: Sequence[Tensor]
) -> list[Float[Tensor, "tokens d_model"]]:
    """Reconstructions of the layers trained; counts who fires on the way."""
    like = part.inputs[0]
    inputs = [torch.zeros_like(like)] * len(transcoder.layers)
    active = [like.new_zeros(len(like), len(layer.W_enc)) for layer in transcoder.layers]
    for at, layer in enumerate(layers):
        inputs[layer] = part.inputs[at]
        active[layer] = transcoder.encode(layer, part.inputs[at])[1]
        fired[at].add_((active[layer] != 0).sum(0, dtype=torch.int32))
    found = transcoder.decode(active, inputs)
    return [found[layer] for layer in layers]


def _affine_errors(held: Batch, writes: Sequence[Scale], outliers: float) -> Iterator[float]:
    """Of an affine map fitted to half of the tokens and measured on the other half."""
    half = len(held) // 2
    for x, y, scale in zip(held.inputs, held.outputs, writes, strict=True):
        weight, wanted = scale.weight(y, outliers), scale.normalised(y)
        matrix, bias = ridge.affine(x[:half], wanted[:half], weight[:half])
        left = wanted[half:] - x[half:] @ matrix - bias
        yield float(
            (weight[half:] * left.square().sum(1)).sum() / (weight[half:].sum() * y.shape[1])
        )


def stands_in(model: ReplacementModel, rows: Iterable[np.ndarray], where: Any) -> dict[str, float]:
    """How well the model speaks with every MLP replaced that has a dictionary.

    Args:
        model: with the dictionary.
        rows: ids of held-out text, in batches without fill.
        where: which positions are replaced.

    Returns:
        KL in nats a token, and the share of tokens with the same most likely next one.
    """
    batches = (torch.from_numpy(some.astype(np.int64)) for some in rows)
    found = fidelity(model, batches, where).comparison
    return {"divergence": found.divergence, "agreement": found.agreement}
