"""A model and the transcoders that stand in for its MLPs."""

from replacement_models.dictionaries.activation import BatchTopK, JumpReLU, ReLU, ReLUTopK, TopK
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.dictionaries.sae import SparseAutoencoder
from replacement_models.errors import ModelError
from replacement_models.formats import load_transcoder, save_transcoder
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
