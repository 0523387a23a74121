"""Attribution graphs: data, influence, pruning, scores, files and pictures. Needs no torch."""

from graphs.graph import AttributionGraph
from graphs.paths import NodePath
from graphs.schema import GraphError, NodeKind
from graphs.scores import Scores

__all__ = ["AttributionGraph", "GraphError", "NodeKind", "NodePath", "Scores"]
