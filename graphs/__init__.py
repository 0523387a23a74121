"""Attribution graphs: data, influence, pruning, scores, files and pictures. Needs no torch."""

from graphs.graph import AttributionGraph
from graphs.groups import Group
from graphs.paths import NodePath
from graphs.schema import GraphError, NodeKind
from graphs.scores import Scores

__all__ = ["AttributionGraph", "GraphError", "Group", "NodeKind", "NodePath", "Scores"]
