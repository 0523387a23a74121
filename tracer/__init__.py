"""The engine: trace a prompt to an attribution graph, and intervene to prove it."""

from tracer.attribute import trace
from tracer.errors import TraceError
from tracer.intervene import Change, intervene
from tracer.interventions.generate import generate
from tracer.interventions.steering import contrast, feature_maxima
from tracer.interventions.values import Intervention, Steering, Supernode
from tracer.targets import Difference, Direction
from tracer.validate import Validation, validate
from tracer.validation.means import corpus_means

__all__ = [
    "Change",
    "Difference",
    "Direction",
    "Intervention",
    "Steering",
    "Supernode",
    "TraceError",
    "Validation",
    "contrast",
    "corpus_means",
    "feature_maxima",
    "generate",
    "intervene",
    "trace",
    "validate",
]
