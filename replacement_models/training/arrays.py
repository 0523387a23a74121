"""Train on activations in hand, of a toy model or from elsewhere: the same loop without a run."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from replacement_models.errors import ModelError
from replacement_models.process import one_call
from replacement_models.training.config import TrainConfig
from replacement_models.training.finish import Worth, worth
from replacement_models.training.fold import folded
from replacement_models.training.loop import Loop
from replacement_models.training.pool import Batches, Chunk, generator
from replacement_models.training.product import chosen
from replacement_models.training.rare import counted, kept, narrowed
from replacement_models.training.sparsity import calibrate
from replacement_models.training.start import started
from replacement_models.training.trainee import Batch
from replacement_models.training.wiring import Wiring
from replacement_models.transcoder import Transcoder

START, REVIVE = 10, 11
"""What generators are for; part of their seeds."""


@dataclass(frozen=True)
class Fitted:
    """A dictionary, and what it is worth on the activations that were held out."""

    transcoder: Transcoder
    worth: Worth


@one_call()
def train_on(
    config: TrainConfig,
    inputs: Float[Tensor, "tokens d_model"],
    outputs: Float[Tensor, "tokens d_model"] | None = None,
) -> Fitted:
    """Train a dictionary of one layer on activations that are there already.

    Nothing is written, and nothing can be taken up.

    Args:
        config: dictionary, start, loss, optimiser, run; of data `held_out` and `buffer`.
        inputs: what is read.
        outputs: what is to be written; None is the inputs, for an sae.

    Returns:
        The dictionary, and its errors (shares of the variance) and L0 on tokens held out.

    Raises:
        ModelError: there are too few tokens, or outputs do not go with inputs or the kind.
    """
    wanted = inputs if outputs is None else outputs
    if inputs.ndim != 2 or wanted.shape != inputs.shape:
        raise ModelError(
            f"outputs: expected the shape of the inputs, (tokens, d_model), got "
            f"{tuple(wanted.shape)} beside {tuple(inputs.shape)}"
        )
    if (outputs is None) != (config.dictionary.kind == "sae"):
        raise ModelError("outputs: an sae has none, a transcoder needs them")
    held = max(1, round(config.data.held_out * len(inputs)))
    size = min(config.data.buffer, len(inputs) - held)
    if size < 2 * config.run.batch:
        raise ModelError(
            f"inputs: expected at least two batches of {config.run.batch} tokens beside those held "
            f"out, got {len(inputs)} tokens"
        )

    def chunk(number: int) -> Batch:
        part = slice(held + number * size, held + (number + 1) * size)
        return Batch([inputs[part]], [wanted[part]])

    chunks = (len(inputs) - held) // size
    loop = _loop(config, chunk, chunks)
    loop.held = Batch([inputs[:held]], [wanted[:held]])
    while loop.done < config.steps:
        loop.step(next(loop.batches))
        loop.done += 1
    calibrate(loop.trainee, loop.held, loop.new())
    trainee = loop.trainee
    if config.run.drop_below:
        found = counted(trainee, map(chunk, range(chunks)))
        trainee = narrowed(trainee, kept(trainee, found))
        calibrate(trainee, loop.held)
    transcoder = folded(trainee, 1, "")
    outliers = config.loss.outliers
    return Fitted(transcoder, worth(transcoder, [0], trainee.writes, loop.held, outliers))


def _loop(config: TrainConfig, chunk: Chunk, chunks: int) -> Loop:
    """A loop that writes nothing."""
    run, batches = config.run, Batches(chunk, chunks, config.run.batch, config.run.seed)
    sample = chunk(0).rows(slice(0, config.start.tokens))
    wiring = Wiring.of(config.dictionary, 1)
    trainee = started(config, wiring, None, sample, generator(run.seed, START))
    like = trainee.b_dec[0].detach()
    return Loop(
        config,
        Path(),
        None,
        trainee,
        None,
        batches,
        sample,
        chosen(run.precision, run.batch, config.dictionary.features, like),
        generator(run.seed, REVIVE),
    )
