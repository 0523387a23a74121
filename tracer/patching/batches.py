"""How many patched rows go in one forward pass: as many as the free memory holds."""

from replacement_models import ReplacementModel
from replacement_models.host import Block
from replacement_models.speed.available import free_on

MOST, MOST_ON_GPU = 64, 1024
"""Rows of one pass. A CPU gains nothing from more; a GPU needs them to be busy."""
SHARE = 0.5
"""Of the free memory that a pass may take."""
STREAMS = 16
"""Vectors of the stream's width that a position takes at once: the stream, queries, keys, values,
the MLP's inner width in and out, and copies that hooks make."""
PATTERNS = 3
"""Scores, their softmax, and a copy of that in float32."""


def rows_that_fit(model: ReplacementModel, positions: int) -> int:
    """Rows of one forward pass of `patched`, at least one.

    Args:
        model: the model, on the device it runs on.
        positions: tokens of a row.
    """
    device = model.device
    most, free = MOST if device.type == "cpu" else MOST_ON_GPU, free_on(device)
    if free is None:
        return min(most, MOST)
    return max(1, min(most, int(SHARE * free / row_bytes(model, positions))))


def row_bytes(model: ReplacementModel, positions: int) -> int:
    """Bytes that one row takes at most, with a feature of its own changed.

    Logits are counted twice, for a soft cap, and so are the activations of the widest layer; what
    changed features write waits for every layer above.
    """
    host, transcoder = model.host, model.transcoder
    layers = transcoder.layers
    widest = max(len(layer.b_enc) for layer in layers)
    waiting = max(len(transcoder.targets(at)) for at in range(len(layers)))
    a_position = 2 * host.vocabulary + 2 * widest + (STREAMS + waiting) * host.d_model
    patterns = PATTERNS * max(map(_heads, host.blocks)) * positions**2
    return model.dtype.itemsize * (positions * a_position + patterns)


def _heads(block: Block) -> int:
    return len(block.output)
