"""Which way large products went so far in a dataset, so that all its prompts go the same way."""

import json
from collections.abc import Mapping
from pathlib import Path

from graphs.exchange.files import writing
from tracer.attribution.product import noted_products
from tracer.errors import TraceError

FILE = "products.json"


class Products:
    """Ways by class, kept beside a dataset: a run that goes on where another was killed knows."""

    def __init__(self, folder: Path) -> None:
        """Read what earlier runs kept.

        Raises:
            TraceError: it cannot be read, or had here.
        """
        self._path = folder / FILE
        self.known: dict[str, str] = {}
        if self._path.is_file():
            try:
                self.known = dict(json.loads(self._path.read_text(encoding="utf-8")))
                noted_products(self.known)
            except TraceError as error:
                raise TraceError(f"{self._path}: {error}") from error
            except (OSError, ValueError, TypeError) as error:
                raise TraceError(f"{self._path}: cannot be read ({error}); remove it") from error

    def add(self, used: Mapping[str, str]) -> None:
        """Keep ways that no prompt had before.

        Raises:
            GraphError: the file cannot be written.
        """
        if used.keys() <= self.known.keys():
            return
        self.known = {**used, **self.known}
        with writing(self._path) as partial:
            text = json.dumps(dict(sorted(self.known.items())), indent=1) + "\n"
            partial.write_text(text, encoding="utf-8")
