"""Trace a prompt to an attribution graph, and intervene to prove it.

Names load what they stand for when they are first used, so `import tracer` takes no time: torch
alone takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tracer.namesakes import check_namesakes, refuse_rooms

if TYPE_CHECKING:
    from graphs import AttributionGraph, GraphError, Group, NodeKind, NodePath, Scores
    from graphs.collections.aggregate import Aggregate, aggregate
    from graphs.collections.clusters import Clusters, clusters
    from graphs.collections.compare import Comparison, compare
    from graphs.collections.dataset import GraphDataset
    from graphs.collections.stability import stability
    from replacement_models import (
        BatchTopK,
        CrossLayerTranscoder,
        DenseDecoder,
        JumpReLU,
        ModelError,
        PerLayerTranscoder,
        ReLU,
        ReLUTopK,
        ReplacementModel,
        TopK,
        Transcoder,
        TranscoderLayer,
        load_transcoder,
        save_transcoder,
    )
    from replacement_models.formats import convert
    from replacement_models.sites import Site
    from replacement_models.training.config import TrainConfig
    from tracer import patching
    from tracer.attention.chains import Chains, head_chains
    from tracer.attention.effects import FirstOrderEffects, attention_effects
    from tracer.attention.explain import explain_attention
    from tracer.attention.explanation import AttentionExplanation
    from tracer.attention.heads import head_loadings
    from tracer.attention.logits import head_logits
    from tracer.attention.patterns import attention_patterns
    from tracer.attention.scores import head_scores
    from tracer.attention.steering import keep_attention
    from tracer.attention.weights import head_composition, head_virtual_weights
    from tracer.attribution.targets import Difference, Direction
    from tracer.attribution.trace import trace
    from tracer.attribution.why import Why, why
    from tracer.datasets.many import trace_many
    from tracer.datasets.triage import triage
    from tracer.errors import TraceError
    from tracer.evaluation.evaluate import evaluate
    from tracer.evaluation.evaluation import Evaluation
    from tracer.evaluation.matching import Matching, match
    from tracer.features.alike import decoder_cosines
    from tracer.features.differing import differing
    from tracer.features.feature import Feature
    from tracer.features.separating import Separating, separating
    from tracer.features.store import FeatureStore
    from tracer.interventions.generate import generate
    from tracer.interventions.intervene import Change, intervene
    from tracer.interventions.steering import contrast, feature_maxima
    from tracer.interventions.values import Intervention, Steering, Supernode
    from tracer.lenses.affine import AffineLens
    from tracer.lenses.contrasts import direction
    from tracer.lenses.directions import Directions
    from tracer.lenses.fit import fit_lens
    from tracer.lenses.lens import LensReading, lens
    from tracer.lenses.local import LocalLens, local_lens
    from tracer.lenses.patchscope import patchscope
    from tracer.lenses.probes import Probe, probe
    from tracer.monitoring.drive import Driven, drive
    from tracer.monitoring.monitor import Monitored, monitor
    from tracer.monitoring.watches import Watch
    from tracer.training.train import train
    from tracer.validation.means import corpus_means
    from tracer.validation.validate import Validation, validate

__all__ = [
    "AffineLens",
    "Aggregate",
    "AttentionExplanation",
    "AttributionGraph",
    "BatchTopK",
    "Chains",
    "Change",
    "Clusters",
    "Comparison",
    "CrossLayerTranscoder",
    "DenseDecoder",
    "Difference",
    "Direction",
    "Directions",
    "Driven",
    "Evaluation",
    "Feature",
    "FeatureStore",
    "FirstOrderEffects",
    "GraphDataset",
    "GraphError",
    "Group",
    "Intervention",
    "JumpReLU",
    "LensReading",
    "LocalLens",
    "Matching",
    "ModelError",
    "Monitored",
    "NodeKind",
    "NodePath",
    "PerLayerTranscoder",
    "Probe",
    "ReLU",
    "ReLUTopK",
    "ReplacementModel",
    "Scores",
    "Separating",
    "Site",
    "Steering",
    "Supernode",
    "TopK",
    "TraceError",
    "TrainConfig",
    "Transcoder",
    "TranscoderLayer",
    "Validation",
    "Watch",
    "Why",
    "aggregate",
    "attention_effects",
    "attention_patterns",
    "clusters",
    "compare",
    "contrast",
    "convert",
    "corpus_means",
    "decoder_cosines",
    "differing",
    "direction",
    "drive",
    "evaluate",
    "explain_attention",
    "feature_maxima",
    "fit_lens",
    "generate",
    "head_chains",
    "head_composition",
    "head_loadings",
    "head_logits",
    "head_scores",
    "head_virtual_weights",
    "intervene",
    "keep_attention",
    "lens",
    "load_transcoder",
    "local_lens",
    "match",
    "monitor",
    "patching",
    "patchscope",
    "probe",
    "save_transcoder",
    "separating",
    "stability",
    "trace",
    "trace_many",
    "train",
    "triage",
    "validate",
    "why",
]

_PLACES = {
    "AffineLens": "tracer.lenses.affine",
    "Aggregate": "graphs.collections.aggregate",
    "AttentionExplanation": "tracer.attention.explanation",
    "AttributionGraph": "graphs",
    "BatchTopK": "replacement_models",
    "Chains": "tracer.attention.chains",
    "Change": "tracer.interventions.intervene",
    "Clusters": "graphs.collections.clusters",
    "Comparison": "graphs.collections.compare",
    "CrossLayerTranscoder": "replacement_models",
    "DenseDecoder": "replacement_models",
    "Difference": "tracer.attribution.targets",
    "Direction": "tracer.attribution.targets",
    "Directions": "tracer.lenses.directions",
    "Driven": "tracer.monitoring.drive",
    "Evaluation": "tracer.evaluation.evaluation",
    "Feature": "tracer.features.feature",
    "FeatureStore": "tracer.features.store",
    "FirstOrderEffects": "tracer.attention.effects",
    "GraphDataset": "graphs.collections.dataset",
    "GraphError": "graphs",
    "Group": "graphs",
    "Intervention": "tracer.interventions.values",
    "JumpReLU": "replacement_models",
    "LensReading": "tracer.lenses.lens",
    "LocalLens": "tracer.lenses.local",
    "Matching": "tracer.evaluation.matching",
    "ModelError": "replacement_models",
    "Monitored": "tracer.monitoring.monitor",
    "NodeKind": "graphs",
    "NodePath": "graphs",
    "PerLayerTranscoder": "replacement_models",
    "Probe": "tracer.lenses.probes",
    "ReLU": "replacement_models",
    "ReLUTopK": "replacement_models",
    "ReplacementModel": "replacement_models",
    "Scores": "graphs",
    "Separating": "tracer.features.separating",
    "Site": "replacement_models.sites",
    "Steering": "tracer.interventions.values",
    "Supernode": "tracer.interventions.values",
    "TopK": "replacement_models",
    "TraceError": "tracer.errors",
    "TrainConfig": "replacement_models.training.config",
    "Transcoder": "replacement_models",
    "TranscoderLayer": "replacement_models",
    "Validation": "tracer.validation.validate",
    "Watch": "tracer.monitoring.watches",
    "Why": "tracer.attribution.why",
    "aggregate": "graphs.collections.aggregate",
    "attention_effects": "tracer.attention.effects",
    "attention_patterns": "tracer.attention.patterns",
    "clusters": "graphs.collections.clusters",
    "compare": "graphs.collections.compare",
    "contrast": "tracer.interventions.steering",
    "convert": "replacement_models.formats",
    "corpus_means": "tracer.validation.means",
    "decoder_cosines": "tracer.features.alike",
    "differing": "tracer.features.differing",
    "direction": "tracer.lenses.contrasts",
    "drive": "tracer.monitoring.drive",
    "evaluate": "tracer.evaluation.evaluate",
    "explain_attention": "tracer.attention.explain",
    "feature_maxima": "tracer.interventions.steering",
    "fit_lens": "tracer.lenses.fit",
    "generate": "tracer.interventions.generate",
    "head_chains": "tracer.attention.chains",
    "head_composition": "tracer.attention.weights",
    "head_loadings": "tracer.attention.heads",
    "head_logits": "tracer.attention.logits",
    "head_scores": "tracer.attention.scores",
    "head_virtual_weights": "tracer.attention.weights",
    "intervene": "tracer.interventions.intervene",
    "keep_attention": "tracer.attention.steering",
    "lens": "tracer.lenses.lens",
    "load_transcoder": "replacement_models",
    "local_lens": "tracer.lenses.local",
    "match": "tracer.evaluation.matching",
    "monitor": "tracer.monitoring.monitor",
    "patching": "tracer",
    "patchscope": "tracer.lenses.patchscope",
    "probe": "tracer.lenses.probes",
    "save_transcoder": "replacement_models",
    "separating": "tracer.features.separating",
    "stability": "graphs.collections.stability",
    "trace": "tracer.attribution.trace",
    "trace_many": "tracer.datasets.many",
    "train": "tracer.training.train",
    "triage": "tracer.datasets.triage",
    "validate": "tracer.validation.validate",
    "why": "tracer.attribution.why",
}
"""Name -> the module that has it; a room of ours -> `tracer`."""

refuse_rooms()

if not TYPE_CHECKING:  # a type checker would let every name pass

    def __getattr__(name: str) -> Any:
        place = _PLACES.get(name)
        if place is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        check_namesakes()
        if place == __name__:
            return import_module(f"{__name__}.{name}")
        globals()[name] = value = getattr(import_module(place), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
