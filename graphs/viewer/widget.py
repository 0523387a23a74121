"""The viewer in a notebook: the same modules as an anywidget, where that package is installed."""

from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from graphs.viewer import modules


class GraphWidget(anywidget.AnyWidget):
    """One graph in a notebook's cell; `view` follows what is done there.

    Args:
        graph: packed, as `AttributionGraph.packed` gives it.
        view: pins, groups, labels, thresholds, as modules/state.mjs has them.
    """

    _esm = f"{modules.script('widget')}export default widget$.widget;\n"
    _css = modules.style()
    graph = traitlets.Bytes().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, graph: bytes, view: Mapping[str, Any] | None = None) -> None:
        super().__init__(graph=graph, view=dict(view or {}))
