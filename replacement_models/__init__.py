"""A model and the transcoders that stand in for its MLPs.

Names load what they stand for when they are first used: torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replacement_models.dictionaries.activation import (
        BatchTopK,
        JumpReLU,
        ReLU,
        ReLUTopK,
        TopK,
    )
    from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
    from replacement_models.dictionaries.per_layer import PerLayerTranscoder
    from replacement_models.dictionaries.sae import SparseAutoencoder
    from replacement_models.errors import ModelError
    from replacement_models.formats.files import load_transcoder, save_transcoder
    from replacement_models.host import Host
    from replacement_models.recording import ActiveFeatures, FrozenLayer, Recording
    from replacement_models.replacement import ReplacementModel
    from replacement_models.sites import ReadPoint, WritePoint
    from replacement_models.transcoder import DenseDecoder, Transcoder, TranscoderLayer

__all__ = [
    "ActiveFeatures",
    "BatchTopK",
    "CrossLayerTranscoder",
    "DenseDecoder",
    "FrozenLayer",
    "Host",
    "JumpReLU",
    "ModelError",
    "PerLayerTranscoder",
    "ReLU",
    "ReLUTopK",
    "ReadPoint",
    "Recording",
    "ReplacementModel",
    "SparseAutoencoder",
    "TopK",
    "Transcoder",
    "TranscoderLayer",
    "WritePoint",
    "load_transcoder",
    "save_transcoder",
]

_PLACES = {
    "ActiveFeatures": "recording",
    "BatchTopK": "dictionaries.activation",
    "CrossLayerTranscoder": "dictionaries.cross_layer",
    "DenseDecoder": "transcoder",
    "FrozenLayer": "recording",
    "Host": "host",
    "JumpReLU": "dictionaries.activation",
    "ModelError": "errors",
    "PerLayerTranscoder": "dictionaries.per_layer",
    "ReLU": "dictionaries.activation",
    "ReLUTopK": "dictionaries.activation",
    "ReadPoint": "sites",
    "Recording": "recording",
    "ReplacementModel": "replacement",
    "SparseAutoencoder": "dictionaries.sae",
    "TopK": "dictionaries.activation",
    "Transcoder": "transcoder",
    "TranscoderLayer": "transcoder",
    "WritePoint": "sites",
    "load_transcoder": "formats.files",
    "save_transcoder": "formats.files",
}
"""Name -> the module here that has it."""

if not TYPE_CHECKING:  # a type checker would let every name pass

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
