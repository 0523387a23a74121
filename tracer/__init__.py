"""The engine: trace a prompt to an attribution graph, and intervene to prove it."""

from tracer.attribute import trace
from tracer.errors import TraceError
from tracer.intervene import Change, Intervention, intervene
from tracer.targets import Difference, Direction

__all__ = [
    "Change",
    "Difference",
    "Direction",
    "Intervention",
    "TraceError",
    "intervene",
    "trace",
]
