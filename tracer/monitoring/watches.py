"""What is watched: a feature, a named group of them, or a direction of the residual stream."""

import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from graphs import GraphError, groups
from graphs.exchange.files import place_of
from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.sites import Site
from tracer.errors import TraceError
from tracer.features.feature import Place
from tracer.features.store import FeatureStore
from tracer.lenses.directions import Directions
from tracer.lenses.readings import stream_sites

WANTED = re.compile(r"(\d{1,9})/(\d{1,9})(?::(-?\d+(?:\.\d*)?(?:e[-+]?\d+)?%?))?")
FEATURE_ID = re.compile(r"(\d+)_(\d+)_\d+")


@dataclass(frozen=True, eq=False)
class Watch:
    """One number a token, and what it must exceed."""

    name: str
    threshold: float
    features: tuple[Place, ...] = ()
    """Their activations are added up."""
    vector: Float[Tensor, " d_model"] | None = None
    """Of unit length: the stream at `site` is read along it."""
    site: Site | None = None

    __repr__ = one_line

    @property
    def kind(self) -> str:
        """What is watched."""
        if self.vector is not None:
            return "direction"
        return "feature" if len(self.features) == 1 else "group"

    @classmethod
    def feature(cls, layer: int, feature: int, threshold: float = 0.0) -> "Watch":
        """Watch the activation of one feature."""
        return cls(f"{layer}/{feature}", threshold, ((layer, feature),))

    @classmethod
    def group(cls, graph: str | Path, name: str, threshold: float = 0.0) -> "Watch":
        """Watch the sum of the activations of a group that is saved with a graph.

        Args:
            graph: folder or zip of a graph, whose `groups.json` names the group.
            name: of the group. A feature that is in it at several positions counts once; members
                that are no features take no part.
            threshold: of the sum.

        Raises:
            TraceError: no groups there, no such group, or one without a feature.
        """
        held = read_groups(Path(graph))
        if name not in held:
            known = ", ".join(map(repr, held)) or "none"
            raise TraceError(f"{graph}: has no group {name!r}; it has {known}")
        found = (FEATURE_ID.fullmatch(one) for one in held[name])
        places = dict.fromkeys((int(one[1]), int(one[2])) for one in found if one)
        if not places:
            raise TraceError(f"{graph}: group {name!r} holds no feature, so nothing can be watched")
        return cls(name, threshold, tuple(places))

    @classmethod
    def direction(cls, found: Directions | str | Path, threshold: float = 0.0) -> "Watch":
        """Watch the stream along a direction: its length that way, in the stream's own units.

        Args:
            found: one direction, or its file (`FILE:LABEL` is one of several).
            threshold: of that length.

        Raises:
            TraceError: no such file or label, several directions, or one without a length.
        """
        directions = found if isinstance(found, Directions) else Directions.load(found)
        if len(directions.labels) != 1:
            known = ", ".join(directions.labels[:8])
            raise TraceError(f"{len(directions.labels)} directions, expected one of {known}")
        [vector], [label] = directions.vectors.double(), directions.labels
        if not vector.any():
            raise TraceError(f"direction {label!r} has no length, so nothing lies along it")
        return cls(label, threshold, vector=vector / vector.norm(), site=directions.site)

    @classmethod
    def named(cls, text: str, store: FeatureStore) -> "Watch":
        """Read `2/311:4.5`, `2/311:50%` of the largest activation a store saw, or `2/311`: half.

        Raises:
            TraceError: it reads otherwise, or the store has no such feature.
        """
        parts = WANTED.fullmatch(text.strip())
        if parts is None:
            raise TraceError(f"{text!r} is not L/F:THRESHOLD, as in 2/311:4.5 or 2/311:50%")
        watch = cls.feature(int(parts[1]), int(parts[2]))
        most, given = store[watch.features[0]].maximum, parts[3] or "50%"
        share = given.endswith("%")
        return replace(watch, threshold=most * float(given[:-1]) / 100 if share else float(given))

    def check(self, model: ReplacementModel) -> None:
        """Refuse a model that has not what is watched.

        Raises:
            TraceError: no such feature, width or site, or a threshold that is no number.
        """
        if not abs(self.threshold) < float("inf"):
            raise TraceError(f"{self.name}: threshold {self.threshold} is no finite number")
        for layer, feature in self.features:
            if layer not in model.transcoder.present:
                known = ", ".join(map(str, model.transcoder.present))
                raise TraceError(f"{layer}/{feature}: layer {layer} has no features; have: {known}")
            width = len(model.transcoder.layers[layer].W_enc)
            if feature >= width:
                raise TraceError(
                    f"{layer}/{feature}: feature {feature} is not in layer {layer}, expected 0 to "
                    f"{width - 1}"
                )
        if self.vector is not None and self.site is not None:
            Directions(self.vector[None], (self.name,), self.site, {}).check_fit(model)
            stream_sites(model, [self.site])


def read_groups(graph: Path) -> dict[str, list[str]]:
    """Groups of a graph's folder or zip: members by name.

    Raises:
        TraceError: there is no such graph, it has no groups, or they are torn.
    """
    content = _groups_file(graph)
    if content is None:
        raise TraceError(f"{graph}: holds no {groups.FILE}; group its nodes first, or name another")
    try:
        return {group.name: list(group.members) for group in groups.from_bytes(content)}
    except GraphError as error:
        raise TraceError(f"{graph}: groups cannot be read ({error})") from error


def _groups_file(graph: Path) -> bytes | None:
    if not graph.exists():
        raise TraceError(f"{graph}: no such graph; expected a folder or a .zip of one")
    try:
        if graph.is_dir():
            file = place_of(graph, groups.FILE)
            return None if file is None else file.read_bytes()
        with zipfile.ZipFile(graph) as archive:
            inside = [one for one in archive.namelist() if one.rpartition("/")[2] == groups.FILE]
            return archive.read(inside[0]) if inside else None
    except (OSError, zipfile.BadZipFile) as error:
        raise TraceError(f"{graph}: cannot be read ({error})") from error


def maximum(watch: Watch, store: FeatureStore) -> float | None:
    """The largest activation a store saw of a feature; None of a direction.

    Of a group it is the sum of its members' largest ones, which they need not reach together.
    """
    if watch.vector is not None:
        return None
    return float(sum(store[place].maximum for place in watch.features))


def stacked(
    watches: "list[Watch]", model: ReplacementModel
) -> dict[Site, tuple[list[int], Tensor]]:
    """By site, which watches read the stream there, and their vectors as columns."""
    found: dict[Site, list[int]] = {}
    for number, watch in enumerate(watches):
        if watch.site is not None:
            found.setdefault(watch.site, []).append(number)
    like = model.host.unembedding
    by_site = {}
    for site, rows in found.items():
        vectors = [vector for row in rows if (vector := watches[row].vector) is not None]
        by_site[site] = rows, torch.stack(vectors).T.to(like)
    return by_site
