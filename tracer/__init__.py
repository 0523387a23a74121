"""The engine: trace a prompt to an attribution graph, and intervene to prove it."""

from tracer.attribution.targets import Difference, Direction
from tracer.attribution.trace import trace
from tracer.errors import TraceError
from tracer.interventions.generate import generate
from tracer.interventions.intervene import Change, intervene
from tracer.interventions.steering import contrast, feature_maxima
from tracer.interventions.values import Intervention, Steering, Supernode
from tracer.validation.means import corpus_means
from tracer.validation.validate import Validation, validate

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
