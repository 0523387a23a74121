"""A dictionary that is evaluated, with the model it stands in."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from replacement_models import ModelError, ReplacementModel, Transcoder, load_transcoder
from replacement_models.dictionaries.neurons import NEURONS, neurons
from replacement_models.dictionaries.partial import ERROR, cover
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.formats.files import content_hash, transcoder_folder
from replacement_models.formats.labels import read_labels
from replacement_models.replaced import Watch, Where, replaced
from replacement_models.replacement import public_name
from tracer.evaluation.spliced import spliced, stage_of

Given = Transcoder | str | Path
"""A dictionary, or the folder or hub id of one; "neurons" is the model's own."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One dictionary."""

    name: str
    model: ReplacementModel
    """With the dictionary; of an autoencoder, which stands in for no MLP, any other."""
    transcoder: Transcoder
    content: str = ""
    """SHA-256 of its files; "" of one in memory."""

    @property
    def is_autoencoder(self) -> bool:
        """Whether it reconstructs what it reads."""
        return isinstance(self.transcoder, SparseAutoencoder)

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that have a dictionary."""
        return self.transcoder.present

    @property
    def widths(self) -> list[int]:
        """Features of each."""
        return [len(self.transcoder.layers[layer].W_enc) for layer in self.layers]

    @property
    def places(self) -> list[str]:
        """What each layer's dictionary stands for."""
        if not self.is_autoencoder:
            return [str(self.transcoder.write_at(layer)) for layer in self.layers]
        return [stage_of(self.transcoder, layer).name.lower() for layer in self.layers]

    def watched(self, where: Where, watch: Watch) -> AbstractContextManager[None]:
        """The model itself, with all that the dictionary makes of what it reads told."""
        if self.is_autoencoder:
            return spliced(self.model, self.transcoder, where, (), watch)
        return replaced(self.model, replace(where, positions=()), watch)

    def instead(
        self, where: Where, layers: Collection[int] | None = None
    ) -> AbstractContextManager[None]:
        """The model with all layers, or some, replaced.

        Below a layer that is replaced alone a cross-layer dictionary reads the model's own pass.
        """
        chosen = self.layers if layers is None else layers
        if self.is_autoencoder:
            return spliced(self.model, self.transcoder, where, chosen)
        below = [layer for layer in self.layers if chosen and layer < max(chosen)]
        return replaced(self.model, replace(where, layers=chosen, writers=below))


def subject_of(model: ReplacementModel, given: Given | None) -> Subject:
    """What is meant, in the model.

    Args:
        model: its own dictionary is evaluated where none is given; its weights are shared.
        given: another one; MLPs it has no dictionary for stay the model's own, and are error in
            graphs.

    Raises:
        ModelError: it cannot be read or does not fit.
    """
    if given is None:
        if not model.transcoder.present:
            raise ModelError("evaluate: the model has no dictionary; name one in transcoders")
        name = model.transcoder_name or "in memory"
        return Subject(name, model, model.transcoder, model.transcoder_hash)
    if isinstance(given, Transcoder):
        return _made(model, given, None)
    if str(given) == NEURONS:
        return _made(model, neurons(model.host), None, NEURONS)
    return _made(model, load_transcoder(given), given, public_name(given))


def _made(
    model: ReplacementModel, found: Transcoder, place: str | Path | None, name: str = "in memory"
) -> Subject:
    fitted = found.beside([block.device for block in model.host.blocks], model.dtype)
    folder = None if place is None else transcoder_folder(place)
    content = "" if folder is None else content_hash(folder)
    if isinstance(fitted, SparseAutoencoder):
        count, width = len(model.host.blocks), model.host.d_model
        if len(fitted.layers) > count or fitted.d_model != width:
            raise ModelError(
                f"{name}: autoencoders of {len(fitted.layers)} layers, {fitted.d_model} wide, "
                f"expected at most {count} layers, {width} wide; they belong to another model"
            )
        return Subject(name, model, fitted, content)
    covering = cover(model.host, fitted, ERROR)
    with_it = replace(
        model,
        transcoder=covering,
        elsewhere="" if covering is fitted else ERROR,
        transcoder_name="" if name == "in memory" else name,
        transcoder_hash=content,
        labels={} if folder is None else read_labels(folder),
        dictionary_folder=folder,
    )
    return Subject(name, with_it, covering, content)
