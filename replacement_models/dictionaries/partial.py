"""Dictionaries at some layers of a model only, and what stands at the others.

Elsewhere the MLP's whole output is error, or its own neurons are the features, if asked. Which of
the two is never guessed: a set that lacks layers is refused until the user says.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.neurons import neurons
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.errors import ModelError, Setting
from replacement_models.host import Host
from replacement_models.no_mlp import NoMLP
from replacement_models.transcoder import Transcoder, TranscoderLayer

ERROR, NEURONS = "error", "neurons"
ELSEWHERE = (ERROR, NEURONS)
"""What may stand where there is no dictionary."""


@final
class MixedTranscoder(Transcoder):
    """Layers of several dictionaries; each says itself where it reads and writes."""

    kind = "mixed"

    def targets(self, layer: int) -> Sequence[int]:
        """Those that the layer names."""
        targets = self.layers[layer].targets
        assert targets is not None
        return targets


def cover(host: Host, transcoder: Transcoder, elsewhere: str | None) -> Transcoder:
    """A dictionary for every layer of a model.

    Args:
        host: the model, L layers.
        transcoder: at most L layers; those it lacks are empty or missing at the top.
        elsewhere: what stands there: "error" or "neurons"; None refuses a set that lacks layers.

    Returns:
        The same dictionary where nothing is missing, otherwise one of L layers.

    Raises:
        ModelError: too many layers, another width, layers are missing and `elsewhere` does not say
            what stands there, or it is neither of the two.
    """
    if elsewhere is not None and elsewhere not in ELSEWHERE:
        raise ModelError(f"elsewhere is {elsewhere!r}, expected one of {', '.join(ELSEWHERE)}")
    check_fit(host, transcoder)
    count = len(host.blocks)
    there = [layer for layer in range(count) if not isinstance(host.blocks[layer].mlp, NoMLP)]
    missing = sorted({*there} - {*transcoder.present})
    if not missing:
        return transcoder if len(transcoder.layers) == count else _padded(transcoder, host)
    if elsewhere is None:
        raise ModelError(*_lacking(host, transcoder, missing))
    whole = _padded(transcoder, host)
    return whole if elsewhere == ERROR else _with_neurons(whole, host, missing)


def check_fit(host: Host, transcoder: Transcoder, whole: bool = False) -> None:
    """Refuse a dictionary of another model.

    Args:
        host: the model.
        transcoder: layers without features count as layers.
        whole: refuse fewer layers than the model has, too.

    Raises:
        ModelError: more layers than the model (or fewer, if `whole`), another width, or a sparse
            autoencoder.
    """
    if isinstance(transcoder, SparseAutoencoder):
        raise ModelError(
            "transcoders: a sparse autoencoder reads the MLP's output and cannot stand in for the "
            "MLP; give per-layer or cross-layer transcoders"
        )
    got, expected = len(transcoder.layers), len(host.blocks)
    if got > expected or (whole and got < expected):
        raise ModelError(_misfit(host, transcoder, "layers", got, expected))
    if transcoder.d_model != host.d_model:
        raise ModelError(_misfit(host, transcoder, "d_model", transcoder.d_model, host.d_model))


def _misfit(host: Host, transcoder: Transcoder, what: str, got: int, expected: int) -> str:
    trained_on = f" (trained on {transcoder.model})" if transcoder.model else ""
    return (
        f"transcoders{trained_on} have {what} {got}, but the {host.family} model has {expected}; "
        "they belong to another model"
    )


def _lacking(host: Host, transcoder: Transcoder, missing: Sequence[int]) -> list[object]:
    """What is missing, and the setting that says what stands there."""
    count = len(transcoder.layers)
    named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    said = f"transcoders have no dictionary at layers {named} of {len(host.blocks)}; say what does:"
    if transcoder.present == tuple(range(count)):
        said = _misfit(host, transcoder, "layers", count, len(host.blocks))
        said += ", or stand for a part of it: then say what stands elsewhere,"
    ways = Setting("elsewhere", ERROR), Setting("elsewhere", NEURONS)
    return [f"{said} ", ways[0], " (nothing: all is error) or ", ways[1], " (the model's own)"]


def _padded(transcoder: Transcoder, host: Host) -> Transcoder:
    """Empty layers on top, as many as the model has more."""
    like = transcoder.layers[0].b_dec
    cross = isinstance(transcoder, CrossLayerTranscoder)
    above = host.blocks[len(transcoder.layers) :]
    empty = [TranscoderLayer.empty(like.to(block.device), 0 if cross else 1) for block in above]
    layers = [*transcoder.layers, *empty]
    kind, where = type(transcoder), {"read": transcoder.read, "write": transcoder.write}
    return kind(layers, model=transcoder.model, **where)  # type: ignore[arg-type]


def _with_neurons(whole: Transcoder, host: Host, missing: Sequence[int]) -> MixedTranscoder:
    """The model's own neurons at the layers that are missing."""
    own = neurons(host, missing)
    layers = [
        replace(
            source.layers[at],
            read=source.read_at(at),
            write=source.write_at(at),
            targets=tuple(source.targets(at)),
        )
        for at, source in ((at, own if at in missing else whole) for at in range(len(host.blocks)))
    ]
    return MixedTranscoder(layers, read=whole.read, write=whole.write, model=whole.model)
