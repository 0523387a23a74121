"""A folder that file names of others are confined to."""

from dataclasses import dataclass
from pathlib import Path

from graphs.words import clipped, visible
from tracer.errors import TraceError

LONGEST = 200
"""Characters of a name."""


@dataclass(frozen=True)
class Root:
    """The one folder whose files may be read and written, links out of it not followed."""

    folder: Path

    def place(self, name: str) -> Path:
        """Where a name leads.

        Args:
            name: relative to the folder.

        Returns:
            An absolute path inside the folder.

        Raises:
            TraceError: it is no name, or leads elsewhere.
        """
        shown = repr(clipped(visible(name), 80))
        if not name.strip() or len(name) > LONGEST or not name.isprintable():
            raise TraceError(f"{shown} is no name of a graph: expected 1 to {LONGEST} characters "
                             "that can be seen")  # fmt: skip
        root = self.folder.resolve()
        try:
            found = (root / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise TraceError(f"{shown} is no name of a graph ({type(error).__name__})") from error
        if not found.is_relative_to(root) or found == root:
            raise TraceError(f"{shown} leads outside the folder that this server was started in: "
                             "expected the name of a graph in it")  # fmt: skip
        return found

    def graphs(self) -> list[str]:
        """Names of the graphs that stand in the folder itself.

        Returns:
            Sorted; folders with `nodes.arrow`, and zips.
        """
        found = []
        for path in self.folder.iterdir():
            inside = path.resolve().is_relative_to(self.folder.resolve())
            if inside and (path.suffix == ".zip" or (path / "nodes.arrow").is_file()):
                found.append(path.name)
        return sorted(found)
