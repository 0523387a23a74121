"""The figures of an evaluation, as a value that is saved and loaded."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from graphs.exchange.files import place_of, write_together
from replacement_models import ReplacementModel
from tracer.attribution.assemble import version_of
from tracer.errors import TraceError
from tracer.evaluation.page import page
from tracer.evaluation.text import Text

NAME, VERSION = "tracer-evaluation", 1
FIGURES, PAGE = "evaluation.json", "evaluation.html"
LARGEST = 1 << 28
"""Bytes of an evaluation; more is something else."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What dictionaries are worth on one text; docs/formats/evaluations.md has every field."""

    figures: Mapping[str, Any]
    """As `evaluation.json` holds them, not a number as None."""

    def __repr__(self) -> str:
        names = ", ".join(one["name"] for one in self.dictionaries)
        return f"Evaluation({self.figures['model']}: {names})"

    @property
    def dictionaries(self) -> Sequence[Mapping[str, Any]]:
        """Figures of each dictionary, in the order they were named."""
        found: Sequence[Mapping[str, Any]] = self.figures["dictionaries"]
        return found

    @property
    def page(self) -> str:
        """A whole HTML document, self-contained, that runs nothing."""
        return page(self.figures)

    def save(self, folder: str | Path) -> None:
        """Write the figures as JSON and as a page, both or neither.

        Raises:
            GraphError: the place cannot be written.
        """
        text = json.dumps(self.figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_together(
            Path(folder),
            {FIGURES: pa.py_buffer(text.encode()), PAGE: pa.py_buffer(self.page.encode())},
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            TraceError: there is none, or it cannot be read.
        """
        path = place_of(Path(folder), FIGURES)
        if path is None:
            raise TraceError(
                f"{folder}: holds no evaluation (no {FIGURES}); name a folder that tracer evaluate "
                "wrote"
            )
        try:
            if path.stat().st_size > LARGEST:
                raise TraceError(f"{path}: {path.stat().st_size} bytes are no evaluation")
            found = json.loads(path.read_text(encoding="utf-8"))
            kind = (found["format"], found["version"])
            whole = isinstance(found["model"], str)
            whole = whole and all(
                isinstance(one["name"], str) and math.isfinite(one["mean"]["l0_total"])
                for one in found["dictionaries"]
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TraceError(f"{path}: cannot be read as an evaluation ({reason})") from error
        if kind != (NAME, VERSION) or not whole:
            raise TraceError(f"{path}: expected {NAME} of version {VERSION}, got {kind}")
        return cls(found)

    def beside(self, earlier: Sequence["Evaluation"]) -> "Evaluation":
        """The same with dictionaries of earlier evaluations in its plot."""
        kept = ("name", "kind", "features", "mean", "replaced", "graphs")
        others = [
            {name: one.get(name) for name in kept} | {"model": before.figures["model"]}
            for before in earlier
            for one in before.dictionaries
        ]
        return Evaluation(plain({**self.figures, "earlier": others}))


def about(model: ReplacementModel, text: Text) -> dict[str, Any]:
    """What was measured on, and with what."""
    return {
        "format": NAME,
        "version": VERSION,
        "model": model.name,
        "model_revision": model.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "corpus": text.packed.fingerprint,
        "rows": len(text.packed.tokens),
        "context": text.context,
        "fitted_tokens": text.count(text.fitted),
        "measured_tokens": text.count(text.measured),
        "settings": text.settings.as_json(),
        "software": {name: version_of(name) for name in ("tracer", "torch", "transformers")},
    }


def plain(value: Any) -> Any:
    """What JSON holds: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
