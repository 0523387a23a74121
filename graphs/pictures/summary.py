"""What a graph comes down to: at most twelve boxes and twenty edges.

Boxes are groups of features, tokens and answers. What is too small for a box is merged into
`other`; it and the errors are where paths end, like tokens. So the shares that tokens, `other`,
errors and what was pruned away carry add up to the whole answer, and every edge drawn carries
influence that never passed through `other`:

    b = (I - P')^-T w - w,  P' the shares of the input with the rows of `other` empty

An edge between boxes carries the sum of P'[t, s] (b_t + w_t), signed, over the members at its ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from graphs import words
from graphs.edges import share_matrix
from graphs.grouped import group_name
from graphs.groups import Group
from graphs.influence import influence
from graphs.pictures.scene import Content
from graphs.schema import NodeKind, number

BOXES, EDGES = 12, 20
"""At most so many, `other` and errors included."""
TOKENS, ANSWERS = 4, 2
"""At most so many boxes of these kinds."""
LEAST = {"token": 0.02, "answer": 0.05, "group": 0.02, "edge": 0.015}
"""Share, of the answer's input that the graph still holds, below which something is `other`, or no
edge is drawn."""


@dataclass(frozen=True, slots=True)
class Box:
    """Some nodes under one name."""

    kind: str
    """token, group, answer, other or error."""
    name: str
    members: tuple[int, ...]
    """Rows of the node table."""
    share: float | None = None
    """Of the answer: what ends here; of an answer, its probability or weight."""
    at: str = ""
    """The token where a group stands, '' for several."""
    position: float = 0.0
    """Mean position of the members, by their influence."""
    depth: float = 0.0
    """Mean row of the members, by their influence: later in the forward pass is higher."""
    measured: float | None = None
    """Change of the answer's logit with the members zeroed, one after the other, summed."""


@dataclass(frozen=True, slots=True)
class Link:
    """An edge between two boxes."""

    source: int
    target: int
    influence: float
    """Signed share of the answer."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Boxes and the edges between them."""

    boxes: list[Box]
    links: list[Link]
    lost: float
    """Share of the answer whose paths end in what was pruned away or lies beyond a cap."""


def summarise(
    content: Content, groups: Sequence[Group], measured: Mapping[str, float] | None = None
) -> Summary:
    """Choose the boxes and edges of a graph's summary.

    Args:
        content: of the graph, pruned.
        groups: of its nodes.
        measured: node id -> by how much the answer's logit falls when the node is zeroed.
    """
    rows = content.nodes.to_pylist()
    share = share_matrix(content.edges, len(rows))
    weight = number(content.nodes, "probability")
    whole = float(weight.sum()) or 1.0
    reached = influence(share, weight)
    held = float(weight @ share.sum(axis=1)) or whole
    boxes = _chosen(_candidates(rows, groups, content), (share, reached / held, weight / whole))
    share, reached = _through(share, weight, _others(boxes, rows, NodeKind.FEATURE))
    boxes = [
        box
        for box in boxes
        if box.kind != "token" or reached[box.members[0]] >= LEAST["token"] * held
    ]
    boxes = [*boxes, *_ends(boxes, rows)]
    boxes = [_with_share(box, rows, reached, whole) for box in boxes]
    links = _links(boxes, _signed(share, content), (reached + weight) / whole)
    boxes, links = _linked(boxes, links, LEAST["edge"] * held / whole)
    ended = sum(box.share or 0.0 for box in boxes if box.kind in ("token", "other", "error"))
    known = [_with_measured(box, rows, measured or {}) for box in boxes]
    return Summary(known, links, max(0.0, 1.0 - ended))


def _candidates(rows: list[dict[str, Any]], groups: Sequence[Group], content: Content) -> list[Box]:
    """Every token, answer, group and feature outside groups; unlabelled ones by position."""
    tokens = [words.token(text) for text in content.metadata.get("tokens", [])]
    at = {row["id"]: here for here, row in enumerate(rows)}
    units = [(group.name, [at[name] for name in group.members if name in at]) for group in groups]
    units = [
        (name, [m for m in some if rows[m]["kind"] == NodeKind.FEATURE]) for name, some in units
    ]
    inside = {member for _, some in units for member in some}
    bare: dict[int, list[int]] = {}
    for here, row in enumerate(rows):
        if row["kind"] != NodeKind.FEATURE or here in inside:
            continue
        if words.label_parts(row["label"])[0]:
            units.append((group_name([row]), [here]))
        else:
            bare.setdefault(row["position"], []).append(here)
    units += [("no label", some) for some in bare.values()]
    found = [_box("group", name, some, rows, tokens) for name, some in units if some]
    for here, row in enumerate(rows):
        if row["kind"] == NodeKind.EMBEDDING:
            text = tokens[row["position"]] if row["position"] < len(tokens) else words.word(row)
            found.append(_box("token", text, [here], rows, tokens))
        elif row["kind"] == NodeKind.LOGIT:
            found.append(_box("answer", words.logit(row), [here], rows, tokens))
    return found


def _box(
    kind: str, name: str, members: Iterable[int], rows: list[dict[str, Any]], tokens: list[str]
) -> Box:
    members = tuple(members)
    weights = np.array([rows[m]["influence"] or 1e-12 for m in members])
    places = np.array([rows[m]["position"] for m in members])
    one = len(set(places.tolist())) == 1 and kind == "group" and places[0] < len(tokens)
    return Box(
        kind, name, members,
        at=tokens[int(places[0])] if one else "",
        position=float(np.average(places, weights=weights)),
        depth=float(np.average(members, weights=weights)),
    )  # fmt: skip


def _chosen(boxes: list[Box], flows: tuple[sparse.csr_array, np.ndarray, np.ndarray]) -> list[Box]:
    """The largest, as many as there is room for beside `other` and the errors."""
    share, reached, weight = flows
    size = {
        box.members: float(reached[list(box.members)].sum()) - _inside(share, reached, box.members)
        for box in boxes
    } | {box.members: float(weight[box.members[0]]) for box in boxes if box.kind == "answer"}
    kept: list[Box] = []
    for kind, most in (("answer", ANSWERS), ("token", TOKENS), ("group", BOXES)):
        room = min(most, BOXES - 2 - len(kept))
        some = sorted(
            (box for box in boxes if box.kind == kind),
            key=lambda box: (-size[box.members], box.depth),
        )
        large = [box for box in some[:room] if size[box.members] >= LEAST[kind]]
        kept += large or some[: kind == "answer"]
    return kept


def _inside(share: sparse.csr_array, reached: np.ndarray, members: tuple[int, ...]) -> float:
    """Influence that flows from members to members."""
    if len(members) < 2:
        return 0.0
    some = np.array(members)
    return float(reached[some] @ share[some][:, some].sum(axis=1))


def _others(boxes: list[Box], rows: list[dict[str, Any]], *kinds: NodeKind) -> list[int]:
    """Nodes of some kinds in no box."""
    inside = {member for box in boxes for member in box.members}
    return [at for at, row in enumerate(rows) if row["kind"] in kinds and at not in inside]


def _through(
    share: sparse.csr_array, weight: np.ndarray, ends: list[int]
) -> tuple[sparse.csr_array, np.ndarray]:
    """P' and b: paths end at `ends`."""
    read = np.ones(len(weight))
    read[ends] = 0
    cut = sparse.csr_array(
        (share.data * np.repeat(read, np.diff(share.indptr)), share.indices, share.indptr),
        shape=share.shape,
    )
    return cut, influence(cut, weight)


def _ends(boxes: list[Box], rows: list[dict[str, Any]]) -> list[Box]:
    """The box of everything small, and that of the errors."""
    small = _others(boxes, rows, NodeKind.FEATURE, NodeKind.EMBEDDING)
    errors = _others(boxes, rows, NodeKind.ERROR)
    last = 1e6
    return [
        Box(kind, name, tuple(some), position=last + at)
        for at, (kind, name, some) in enumerate(
            (("other", "other", small), ("error", "errors", errors))
        )
        if some
    ]


def _with_share(box: Box, rows: list[dict[str, Any]], reached: np.ndarray, whole: float) -> Box:
    if box.kind == "answer":
        return replace(box, share=(rows[box.members[0]]["probability"] or 0) / whole)
    if box.kind == "group":
        return box
    return replace(box, share=float(reached[list(box.members)].sum()) / whole)


def _signed(share: sparse.csr_array, content: Content) -> sparse.csr_array:
    return sparse.csr_array(
        (np.copysign(share.data, content.edges["weight"].to_numpy()), share.indices, share.indptr),
        shape=share.shape,
    )


def _links(boxes: list[Box], signed: sparse.csr_array, through: np.ndarray) -> list[Link]:
    """All edges between boxes that carry enough, largest first."""
    owner = np.full(signed.shape[0], -1)
    for at, box in enumerate(boxes):
        owner[list(box.members)] = at
    target = np.repeat(np.arange(signed.shape[0]), np.diff(signed.indptr))
    flow = signed.data * through[target]
    ends = np.stack([owner[signed.indices], owner[target]])
    kept = (ends >= 0).all(0) & (ends[0] != ends[1])
    table = sparse.coo_array((flow[kept], ends[:, kept]), (len(boxes),) * 2).tocsr().tocoo()
    found = [
        Link(int(s), int(t), float(value))
        for s, t, value in zip(table.row, table.col, table.data, strict=True)
        if abs(value) > 0 and boxes[t].kind in ("group", "answer")
    ]
    return sorted(found, key=lambda link: -abs(link.influence))


def _linked(boxes: list[Box], links: list[Link], least: float) -> tuple[list[Box], list[Link]]:
    """The strongest edges, each box's strongest input and output first; boxes without are gone."""
    needed: dict[Link, None] = {}
    for at, box in enumerate(boxes):
        ways = [[link for link in links if link.source == at]] if box.kind != "answer" else []
        if box.kind in ("group", "answer"):
            ways.append([link for link in links if link.target == at])
        needed |= dict.fromkeys(way[0] for way in ways if way)
    enough = [link for link in links if abs(link.influence) >= least]
    order = dict.fromkeys([*sorted(needed, key=lambda link: -abs(link.influence)), *enough])
    kept = list(order)[:EDGES]
    used = {end for link in kept for end in (link.source, link.target)}
    used |= {at for at, box in enumerate(boxes) if box.kind in ("answer", "other", "error")}
    place = {old: new for new, old in enumerate(sorted(used))}
    return [boxes[at] for at in sorted(used)], [
        Link(place[one.source], place[one.target], one.influence) for one in kept
    ]


def _with_measured(box: Box, rows: list[dict[str, Any]], measured: Mapping[str, float]) -> Box:
    known = [measured[rows[m]["id"]] for m in box.members if rows[m]["id"] in measured]
    if box.kind != "group" or not known:
        return box
    return replace(box, measured=-float(sum(known)))
