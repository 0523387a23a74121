"""A model and the transcoders that stand in for its MLPs.

Names are imported at first use: a command line that only needs a name or an error loads no torch.
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

_MODULES = {
    "dictionaries.activation": ("BatchTopK", "JumpReLU", "ReLU", "ReLUTopK", "TopK"),
    "dictionaries.cross_layer": ("CrossLayerTranscoder",),
    "dictionaries.per_layer": ("PerLayerTranscoder",),
    "dictionaries.sae": ("SparseAutoencoder",),
    "errors": ("ModelError",),
    "formats.files": ("load_transcoder", "save_transcoder"),
    "host": ("Host",),
    "recording": ("ActiveFeatures", "FrozenLayer", "Recording"),
    "replacement": ("ReplacementModel",),
    "sites": ("ReadPoint", "WritePoint"),
    "transcoder": ("DenseDecoder", "Transcoder", "TranscoderLayer"),
}
"""Where each name stands; the imports above say the same to a type checker."""

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

if not TYPE_CHECKING:  # a type checker must go on refusing names that are not there

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
