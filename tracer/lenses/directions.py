"""Directions of the residual stream as a file: what probes and contrasts leave behind.

One safetensors file: `vectors` (n, D), float32, and a header whose entry `direction` is JSON:
format, version, the site, a label a direction, and how they were made and measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.sites import STREAM, Site, Stage
from tracer.attribution.targets import Direction
from tracer.errors import TraceError
from tracer.interventions.values import Steering
from tracer.lenses.stored import read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class Directions:
    """One or more directions at one site of the residual stream."""

    vectors: Float[Tensor, "directions d_model"]
    labels: tuple[str, ...]
    site: Site
    about: Mapping[str, Any]
    """How they were made, and how well they read and steer on what was held out."""

    __repr__ = one_line

    def named(self, label: str) -> "Directions":
        """The one direction of a label, in a set of its own.

        Raises:
            TraceError: there is no such label.
        """
        if label not in self.labels:
            known = ", ".join(map(repr, self.labels[:8]))
            more = ", ..." if len(self.labels) > 8 else ""
            raise TraceError(f"no direction is labelled {label!r}, expected one of {known}{more}")
        row = self.labels.index(label)
        return Directions(self.vectors[row : row + 1], (label,), self.site, self.about)

    def targets(self) -> list[Direction]:
        """What `tracer.trace` takes to explain them: one target each."""
        return [
            Direction(vector, label, site=self.site)
            for vector, label in zip(self.vectors, self.labels, strict=True)
        ]

    def steering(self, scale: float = 1.0, position: int | slice | None = None) -> Steering:
        """What `tracer.intervene` and `tracer.generate` take to add the direction.

        Args:
            scale: times the vector.
            position: where; None is everywhere.

        Raises:
            TraceError: there are several, or they lie between attention and MLP.
        """
        if len(self.labels) > 1:
            raise TraceError(
                f"{len(self.labels)} directions cannot be added as one; name one of "
                f"{', '.join(map(repr, self.labels[:4]))}, ..."
            )
        return Steering(
            layer=self._layer(), vector=self.vectors[0], position=_span(position), scale=scale
        )

    def removal(self, scale: float = 1.0, position: int | slice | None = None) -> Steering:
        """What they take to project the directions out: all of their span.

        Args:
            scale: share that is removed.
            position: where; None is everywhere.

        Raises:
            TraceError: they lie between attention and MLP.
        """
        return Steering(
            layer=self._layer(),
            vector=self.vectors,
            position=_span(position),
            scale=scale,
            remove=True,
        )

    def check_fit(self, model: ReplacementModel) -> None:
        """Refuse a model of another width.

        Raises:
            TraceError: the widths differ.
        """
        width = model.host.d_model
        if self.vectors.shape[1] != width:
            raise TraceError(
                f"directions of width {self.vectors.shape[1]} do not fit "
                f"{model.name or 'the model'}, whose stream is {width} wide"
            )

    def _layer(self) -> int:
        if self.site.stage is not Stage.RESID_PRE:
            raise TraceError(
                f"a direction at {self.site} can be read, not added or removed: that is done in "
                "the stream entering a layer"
            )
        return self.site.layer

    def save(self, path: str | Path) -> None:
        """Write them to a file that ends in .safetensors; the same directions, the same bytes.

        Raises:
            TraceError: the path does not end so.
            GraphError: nothing can be written there.
        """
        said = {"site": str(self.site), "labels": [*self.labels], **self.about}
        write_tensors(Path(path), {"vectors": self.vectors}, "direction", said)

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Read directions.

        Args:
            path: of the file; `FILE:LABEL` is one of several.

        Raises:
            TraceError: no such file or label, or it holds no directions.
        """
        file, label = Path(path), None
        if not file.is_file() and ":" in str(path):
            before, _, label = str(path).rpartition(":")
            file = Path(before)
        tensors, about = read_tensors(file, "direction", ("vectors",))
        vectors, labels = tensors["vectors"], about.pop("labels", None)
        site = Site.parse(str(about.pop("site", "")))
        if site.stage not in STREAM:
            raise TraceError(f"{file}: {site} is no site of the residual stream")
        if not isinstance(labels, list) or vectors.ndim != 2 or len(labels) != len(vectors):
            raise TraceError(
                f"{file}: vectors have shape {tuple(vectors.shape)}, expected one for each of the "
                f"labels {labels!r}"
            )
        found = cls(vectors, tuple(map(str, labels)), site, about)
        return found if label is None else found.named(label)


def _span(position: int | slice | None) -> int | slice:
    return slice(None) if position is None else position
