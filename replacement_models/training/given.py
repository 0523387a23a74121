"""Starting from a dictionary that is finished: its features, in normalised units."""

from pathlib import Path

import torch

from replacement_models.dictionaries.activation import JumpReLU
from replacement_models.errors import ModelError
from replacement_models.formats import load_transcoder
from replacement_models.training.config import TrainConfig
from replacement_models.training.trainee import Trainee
from replacement_models.transcoder import Transcoder


def given_dictionary(config: TrainConfig) -> Transcoder | None:
    """What `start.dictionary` names.

    Returns:
        It, float32, or None where none is named.

    Raises:
        ModelError: it cannot be read, is of another kind or activation, or has a skip and none is
            trained.
    """
    start, chosen = config.start, config.dictionary
    if start.dictionary is None:
        return None
    found = load_transcoder(Path(start.dictionary)).to(config.run.device, torch.float32)
    jumps = all(isinstance(found.layers[at].activation, JumpReLU) for at in found.present)
    if not chosen.skip and any(layer.W_skip is not None for layer in found.layers):
        raise ModelError(
            f"dictionary.skip: expected true, since the dictionary in {start.dictionary} has a "
            "linear skip, got False"
        )
    if found.kind != chosen.kind or not jumps or chosen.activation != "jump_relu":
        raise ModelError(
            f"start.dictionary: expected a {chosen.kind} of jump_relu features for one of "
            f"{chosen.activation}, got {found} in {start.dictionary}"
        )
    return found


def given_layers(config: TrainConfig, found: Transcoder, trained: tuple[int, ...]) -> list[int]:
    """Numbers, among the layers trained, of those that start from a dictionary.

    Args:
        config: says which are wanted.
        found: the dictionary.
        trained: the layers trained, from below.

    Raises:
        ModelError: it has no features at a layer that is named.
    """
    wanted = config.start.dictionary_layers
    for layer in wanted or ():
        if layer not in found.present or layer not in trained:
            raise config.start.wrong("dictionary_layers", f"some of {found.present}", wanted)
    chosen = found.present if wanted is None else wanted
    return [at for at, layer in enumerate(trained) if layer in chosen]


@torch.no_grad()
def take(trainee: Trainee, at: int, found: Transcoder) -> int:
    """Give the first features of a layer the weights of a finished one.

    Args:
        trainee: changed in place.
        at: number of the layer.
        found: the dictionary.

    Returns:
        How many features those are.

    Raises:
        ModelError: it has more features there than are trained, or is of another width.
    """
    layers = trainee.wiring.layers
    layer = found.layers[layers[at]]
    count, width = layer.W_enc.shape
    if count > len(trainee.W_enc[at]) or width != trainee.width:
        raise ModelError(
            f"start.dictionary: expected at most {len(trainee.W_enc[at])} features of width "
            f"{trainee.width} at layer {layers[at]}, got {count} of width {width}"
        )
    reads, rows = trainee.reads[at], layer.decoder.rows(torch.arange(count))
    targets = list(found.targets(layers[at]))
    activation = layer.activation
    assert isinstance(activation, JumpReLU)
    trainee.W_enc[at][:count] = layer.W_enc * reads.deviation
    trainee.b_enc[at][:count] = layer.b_enc + layer.W_enc @ reads.mean
    trainee.threshold[at][:count] = activation.threshold
    write = trainee.W_dec[at].unflatten(1, (-1, width))
    for slot, target in enumerate(trainee.wiring.slots(at)):
        if layers[target] in targets:
            scale = trainee.writes[target].deviation
            write[:count, slot] = rows[:, targets.index(layers[target])] / scale
    writes, bias = trainee.writes[at], layer.b_dec
    if layer.W_skip is not None:
        bias = bias + reads.mean @ layer.W_skip
        trainee.W_skip[at].copy_(layer.W_skip * (reads.deviation / writes.deviation))
    trainee.b_dec[at].copy_((bias - writes.mean) / writes.deviation)
    return count
