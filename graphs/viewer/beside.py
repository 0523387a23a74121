"""What a user made of a graph in the viewer, as it stands on disk: its name and `view.json`."""

from pathlib import Path

from graphs.exchange.arrow import VIEW, content_of
from graphs.exchange.views import view_of
from graphs.viewer.payload import Beside


def read_beside(path: Path) -> Beside:
    """What stands beside a graph in its folder or .zip, besides what the graph itself has loaded.

    Returns:
        The graph's name and its saved view, which is empty where there is none.

    Raises:
        GraphError: the view is torn or none.
    """
    return Beside(name=path.name, view=view_of(content_of(path, VIEW), f"{path}/{VIEW}"))
