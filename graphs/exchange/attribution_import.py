"""The attribution-graph JSON of other tools as a graph.

Read are the files of circuit-tracer (old and new), Neuronpedia, Anthropic's own and ours. What such
a file gets wrong without making a graph impossible is left out and said; the rest is refused.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from graphs import node_sites
from graphs.edges import STABILITY
from graphs.exchange.attention_json import tables_from_json
from graphs.exchange.attribution_json import OWN, PADDED, uncantor, unlabelled
from graphs.groups import LONGEST, Group, from_json, left
from graphs.schema import COLUMNS, GIVEN, GraphError, NodeKind
from graphs.words import label_parts

MOST = 1e300
"""Larger weights cannot be added up."""
THREE = re.compile(r"(\d{1,9})_(?:lor_|cro_)?(-?\d{1,12})_(\d{1,9})")
"""A feature's or a target's id: layer, number, position."""
TOKEN = re.compile(r"E_(\d{1,12})_(\d{1,9})")
KEPT = {
    NodeKind.EMBEDDING: TOKEN,
    NodeKind.ERROR: re.compile(r"\d{1,9}a?_-1_\d{1,9}"),
    NodeKind.FEATURE: re.compile(r"\d{1,9}a?_\d{1,12}_\d{1,9}"),
    NodeKind.LOGIT: re.compile(r"\d{1,9}_\d{1,12}_\d{1,9}"),
}
"""Ids that stay as the file has them."""
QUOTED = re.compile(r'"([^"]*)"')
CHANCE = re.compile(r"\(p=([0-9.eE+-]+)\)")


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """What a file holds."""

    columns: dict[str, Any]
    """One entry a node, in computation order."""
    effect: sparse.csr_array
    """(nodes, nodes) effects of sources on targets."""
    metadata: dict[str, Any]
    groups: tuple[Group, ...]
    pins: list[str]
    notes: list[str]
    """What was left out or guessed, a line each."""
    whole: bool
    """Whether the columns are those of the graph that was exported here, influence included."""
    attention: dict[str, pa.Table] = field(default_factory=dict)
    """Tables about attention, of a file that was exported here."""
    stability: np.ndarray | None = None
    """(edges,) of such a file, in the order of `effect`, NaN where it is not known."""


def read_attribution_json(content: bytes) -> Imported:
    """A graph from the JSON of circuit-tracer, Neuronpedia or our own export.

    Returns:
        Its nodes, effects and metadata, groups and pins, and what was left out.

    Raises:
        GraphError: it is no JSON, or no attribution graph; one line.
    """
    value = _parsed(content)
    metadata, nodes, links = value["metadata"], value["nodes"], value["links"]
    tokens = metadata.get("prompt_tokens")
    if not isinstance(tokens, list) or not all(isinstance(one, str) for one in tokens):
        raise GraphError("metadata.prompt_tokens is no list of texts: no attribution graph")
    notes: list[str] = []
    rows = [_row(at, node, metadata) for at, node in enumerate(nodes)]
    order = sorted(range(len(rows)), key=lambda at: (_rank(rows[at]), at))
    rows = [rows[at] for at in order]
    own = _restored(value.get(OWN), [nodes[at] for at in order], order)
    _name(rows, ours=own is not None)
    ends = _Ends.of([nodes[at] for at in order], rows)
    effect = _effect(links, rows, ends, notes)
    params = value.get("qParams")
    params = params if isinstance(params, dict) else {}
    _relabel(rows, params.get("clerps"), notes)
    ids = [row["id"] for row in rows]
    groups = _groups(params.get("supernodes"), ends, ids, notes)
    pins = [ends.first[name] for name in _texts(params.get("pinnedIds")) if name in ends.first]
    about = _about(metadata, rows, tokens)
    pinned = [ids[at] for at in dict.fromkeys(pins)]
    if own is None:
        columns = {name: [row.get(name) for row in rows] for name in GIVEN}
        reported = [row["reported"] for row in rows]
        if any(one is not None for one in reported):
            columns["reported_influence"] = pa.array(reported, pa.float64())
        if traced := sum("qk_tracing_results" in node for node in nodes):
            notes.append(f"left out: QK tracing results of {traced} nodes, which do not say of "
                         "which head they are")  # fmt: skip
        return Imported(columns, effect, about, groups, pinned, notes, whole=False)
    columns, kept, weights, ours, attention = own
    columns["id"] = ids
    effect = _single(effect) if weights == "float" else effect.astype(np.float64)
    known = left(_with_places(groups, ours), ids)
    stable = _stability(links, ends, effect)
    return Imported(
        columns, effect, kept, known, pinned, notes, whole=True, attention=attention,
        stability=stable,
    )  # fmt: skip


def _stability(
    links: list[dict[str, Any]], ends: "_Ends", effect: sparse.csr_array
) -> np.ndarray | None:
    """How stable each effect is; None where no link says."""
    told = {
        (ends.first.get(link["source"]), ends.first.get(link["target"])): link[STABILITY]
        for link in links
        if STABILITY in link
    }
    if not told:
        return None
    target, source = effect.tocoo().coords
    pairs = zip(source.tolist(), target.tolist(), strict=True)
    values = [_number(told.get(pair)) for pair in pairs]
    found = np.array([np.nan if value is None else value for value in values])
    return np.where((found >= 0) & (found <= 1), found, np.nan)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise GraphError(f"no JSON: {reason:.120}") from error
    kinds = {"metadata": dict, "nodes": list, "links": list}
    for name, kind in kinds.items():
        if not isinstance(value, dict) or not isinstance(value.get(name), kind):
            raise GraphError(
                f"no attribution graph: expected an object with metadata, nodes and links, {name} "
                f"is missing or no {'list' if kind is list else 'object'}"
            )
    return value


def _row(at: int, node: object, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the node table, its id still to be given."""
    if not isinstance(node, dict):
        raise GraphError(f"node {at} is {node!r:.60}: expected an object")
    name = node.get("node_id", node.get("jsNodeId"))
    if not isinstance(name, str) or not name:
        raise GraphError(f"node {at} has node_id {name!r:.60}: expected some text")
    kind, attention = _kind(node)
    position = _whole(node.get("ctx_idx"))
    if position is None or position < 0:
        raise GraphError(f"node {name!r:.60} has ctx_idx {node.get('ctx_idx')!r:.40}: expected a "
                         "position from 0")  # fmt: skip
    row: dict[str, Any] = {
        "kind": kind, "position": position, "foreign": name, "attention": attention,
        "activation": _number(node.get("activation")), "label": None,
        "reported": _number(node.get("influence")),
    }  # fmt: skip
    clerp = _text(node.get("clerp"))
    if kind == NodeKind.EMBEDDING:
        return row | _embedding(name, position, metadata["prompt_tokens"])
    if kind == NodeKind.LOGIT:
        return row | _logit(name, node, clerp)
    return row | _inner(name, node, kind, metadata.get("schema_version"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _embedding(name: str, position: int, tokens: list[str]) -> dict[str, Any]:
    found = TOKEN.fullmatch(name)
    text = tokens[position] if position < len(tokens) else None
    return {"layer": -1, "token": int(found[1]) if found else None, "text": text}


def _inner(name: str, node: Mapping[str, Any], kind: NodeKind, version: object) -> dict[str, Any]:
    """Layer of a feature or an error, and what a feature is."""
    layer = _whole(node.get("layer"))
    parts = THREE.fullmatch(name)
    if layer is None or layer < 0:
        layer = int(parts[1]) if parts and kind == NodeKind.FEATURE else None
    if layer is None:
        raise GraphError(f"node {name!r:.60} has layer {node.get('layer')!r:.40}: expected a "
                         "layer from 0")  # fmt: skip
    if kind != NodeKind.FEATURE:
        return {"layer": layer}
    layer, feature = _feature(node, parts, layer, version)
    clerp = _text(node.get("clerp"))
    named = clerp.startswith(unlabelled(layer, feature))
    return {"layer": layer, "feature": feature, "label": None if named else clerp or None}


def _kind(node: Mapping[str, Any]) -> tuple[NodeKind, bool]:
    """What a node is, and whether it stands at an attention output."""
    said = str(node.get("feature_type") or "")
    attention = said.startswith("lorsa")
    if "error" in said:
        return NodeKind.ERROR, attention or "attn" in str(node.get("node_id"))
    if said in ("embedding", "logit"):
        return NodeKind(said), False
    if said == "bias":
        return NodeKind.ERROR, False
    return NodeKind.FEATURE, attention


def _logit(name: str, node: Mapping[str, Any], clerp: str) -> dict[str, Any]:
    parts, text, chance = THREE.fullmatch(name), QUOTED.search(clerp), CHANCE.search(clerp)
    weight = _number(node.get("token_prob"))
    if not weight and chance:
        weight = _number(_float(chance[1]))
    if weight is not None and weight < 0:
        raise GraphError(f"node {name!r:.60} has token_prob {weight}: expected no negative number")
    number = int(parts[2]) if parts else _whole(node.get("feature"))
    bare = CHANCE.sub("", clerp).strip() or None
    return {
        "layer": None, "token": number if number is not None and number >= 0 else None,
        "text": text[1] if text else bare, "probability": weight or 0.0,
    }  # fmt: skip


def _feature(
    node: Mapping[str, Any], parts: re.Match[str] | None, layer: int, version: object
) -> tuple[int, int]:
    """Layer and number of a feature: from its id, else from `feature` in either numbering."""
    if parts and int(parts[2]) >= 0:
        return int(parts[1]), int(parts[2])
    number = _whole(node.get("feature"))
    if number is None or number < 0:
        return layer, 0
    if version == 1:
        return uncantor(number)
    old = number - layer * PADDED
    return (layer, old) if 0 <= old < PADDED else (layer, number)


def _rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if row["kind"] == NodeKind.LOGIT:
        return (1,)
    return (0, *node_sites.rank(_site(row)), row["kind"] == NodeKind.ERROR)


def _site(row: Mapping[str, Any]) -> str:
    if row["kind"] == NodeKind.EMBEDDING:
        return node_sites.EMBED
    return f"{'attn_out' if row['attention'] else 'mlp_out'}.{row['layer']}"


def _name(rows: list[dict[str, Any]], ours: bool) -> None:
    """Ids as ours are, none twice, the file's own where they are; sites; the targets' layer."""
    last = 1 + max((row["layer"] for row in rows if row["kind"] != NodeKind.LOGIT), default=-1)
    used = Counter(row["foreign"] for row in rows)
    taken: Counter[str] = Counter()
    for row in rows:
        if row["kind"] == NodeKind.LOGIT:
            row["layer"] = last
        plain = _usual_name(row, last)
        kept = ours or (KEPT[row["kind"]].fullmatch(row["foreign"]) and used[row["foreign"]] == 1)
        name = row["foreign"] if kept else plain
        taken[name] += 1
        row["id"] = name if taken[name] == 1 else f"{name}-{taken[name]}"
        row["site"] = node_sites.LOGITS if row["kind"] == NodeKind.LOGIT else _site(row)


def _usual_name(row: Mapping[str, Any], last: int) -> str:
    at, mark = row["position"], "a" if row["attention"] else ""
    return {
        NodeKind.EMBEDDING: f"E_{row.get('token') or 0}_{at}",
        NodeKind.ERROR: f"{row['layer']}{mark}_-1_{at}",
        NodeKind.FEATURE: f"{row['layer']}{mark}_{row.get('feature')}_{at}",
        NodeKind.LOGIT: f"{last + 1}_{row.get('token') or 0}_{at}",
    }[row["kind"]]


@dataclass(frozen=True, slots=True)
class _Ends:
    """Which rows an id of the file names."""

    all: dict[str, list[int]]
    first: dict[str, int]

    @classmethod
    def of(cls, nodes: list[dict[str, Any]], rows: list[dict[str, Any]]) -> "_Ends":
        found: dict[str, list[int]] = defaultdict(list)
        for at, row in enumerate(rows):
            found[row["foreign"]].append(at)
        for at, node in enumerate(nodes):
            other = node.get("jsNodeId")
            if isinstance(other, str) and other not in found:
                found[other].append(at)
        return cls(dict(found), {name: some[0] for name, some in found.items()})


def _effect(
    links: list[Any], rows: list[dict[str, Any]], ends: _Ends, notes: list[str]
) -> sparse.csr_array:
    """Effects; what cannot be is left out and counted in `notes`."""
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    left_out: Counter[str] = Counter()
    turns: Counter[tuple[str, str]] = Counter()
    for at, link in enumerate(links):
        weight = _number(link.get("weight")) if isinstance(link, dict) else None
        if weight is None or abs(weight) > MOST:
            raise GraphError(f"link {at} is {link!r:.80}: expected source, target and a finite "
                             "weight")  # fmt: skip
        names = (str(link.get("source")), str(link.get("target")))
        found = [ends.all.get(name, []) for name in names]
        if not all(found):
            left_out["lead to no node"] += 1
            continue
        pairs = [(s, t) for t in found[1] for s in found[0] if _possible(rows, s, t)]
        if not pairs:
            left_out["run where no effect can"] += 1
            continue
        if len(found[0]) > 1 or len(found[1]) > 1:
            left_out["name one of several nodes of one id, told apart by kind and order"] += 1
        source, target = pairs[min(turns[names], len(pairs) - 1)]
        turns[names] += 1
        sources.append(source)
        targets.append(target)
        weights.append(weight)
    verb = {"name one": "links"}
    notes += [f"{count} {verb.get(why[:8], 'links left out: they')} {why}"
              for why, count in left_out.items()]  # fmt: skip
    effect = sparse.csr_array((np.array(weights, float), (targets, sources)), (len(rows),) * 2)
    effect.sum_duplicates()
    if effect.nnz < len(weights):
        notes.append(f"{len(weights) - effect.nnz} links stand twice: their weights were added")
    single = _single(effect)
    return single if (single.data == effect.data).all() else effect


def _single(effect: sparse.csr_array) -> sparse.csr_array:
    """In float32, infinite where that cannot hold a weight."""
    with np.errstate(over="ignore"):
        return effect.astype(np.float32)


def _possible(rows: list[dict[str, Any]], source: int, target: int) -> bool:
    """Whether one node can have an effect on another."""
    low, high = rows[source]["kind"], rows[target]["kind"]
    return (
        source < target
        and low != NodeKind.LOGIT
        and high in (NodeKind.FEATURE, NodeKind.LOGIT)
        and (high == NodeKind.LOGIT or rows[source]["site"] != rows[target]["site"])
    )


def _relabel(rows: list[dict[str, Any]], clerps: object, notes: list[str]) -> None:
    """Labels that a saved view carries: of Neuronpedia by place, of circuit-tracer by number."""
    named: dict[str, str] = {}
    for pair in _listed(clerps):
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str):
            named[str(pair[0])] = pair[1]
    used = 0
    for row in rows:
        if row["kind"] != NodeKind.FEATURE:
            continue
        label = named.get(row["foreign"]) or named.get(row["id"])
        if label:
            row["label"], used = label, used + 1
    if len(named) > used:
        notes.append(f"{len(named) - used} labels of the saved view name no feature")


def _groups(values: object, ends: _Ends, ids: list[str], notes: list[str]) -> tuple[Group, ...]:
    """Supernodes: `[label, id, ...]` each; a node is in the first that names it."""
    taken: set[int] = set()
    names: Counter[str] = Counter()
    found, strange = [], 0
    for value in _listed(values):
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            strange += 1
            continue
        members = [ends.first[one] for one in _texts(value[1:]) if one in ends.first]
        members = [at for at in dict.fromkeys(members) if at not in taken]
        strange += len(value) - 1 - len(members)
        taken |= set(members)
        name = value[0].strip()[: LONGEST - 8] or "group"
        names[name] += 1
        if members:
            name = name if names[name] == 1 else f"{name} {names[name]}"
            found.append((name, members))
    if strange:
        notes.append(f"{strange} members of groups name no node, or one in an earlier group")
    return tuple(Group(name, tuple(ids[at] for at in members)) for name, members in found)


def _with_places(groups: tuple[Group, ...], ours: tuple[Group, ...]) -> tuple[Group, ...]:
    """The file's groups, where it was not changed since we wrote it with their places."""
    same = {(one.name, one.members) for one in groups} == {(one.name, one.members) for one in ours}
    return ours if same else groups


def _restored(
    own: object, nodes: list[dict[str, Any]], order: list[int]
) -> tuple[dict[str, Any], dict[str, Any], str, tuple[Group, ...], dict[str, pa.Table]] | None:
    """The columns as they were exported; None for another tool's file, or an edited one."""
    if not isinstance(own, dict) or own.get("format") != 1 or order != sorted(order):
        return None
    columns, metadata = own.get("columns"), own.get("metadata")
    if not isinstance(columns, dict) or not isinstance(metadata, dict):
        return None
    found: dict[str, Any] = {}
    try:
        for name, held in columns.items():
            kind = COLUMNS.get(name) or pa.type_for_alias(held["type"])
            found[name] = pa.array(held["values"], kind)
            if len(found[name]) != len(nodes):
                return None
        groups = from_json(own.get("groups"))
        attention = tables_from_json(own.get("attention"))
    except (pa.ArrowException, KeyError, TypeError, ValueError, GraphError):
        return None
    known = {"kind", "label", "layer", "feature"} <= set(found)
    if known and all(isinstance(node.get("clerp"), str) for node in nodes):
        found["label"] = pa.array(_labels(found, nodes), pa.string())
    return found, metadata, str(own.get("weights")), groups, attention


def _labels(found: Mapping[str, pa.Array], nodes: list[dict[str, Any]]) -> list[str | None]:
    """The labels as exported, but those that were changed where the file was."""
    rows = pa.table({name: found[name] for name in ("kind", "label", "layer", "feature")})
    labels = []
    for node, row in zip(nodes, rows.to_pylist(), strict=True):
        label, clerp = row["label"], node["clerp"]
        named = clerp.startswith(unlabelled(row["layer"], row["feature"]))
        if row["kind"] == NodeKind.FEATURE and not (named and not label_parts(label)[0]):
            label = label if clerp == (label or "") else clerp
        labels.append(label)
    return labels


def _about(
    metadata: Mapping[str, Any], rows: list[dict[str, Any]], tokens: list[str]
) -> dict[str, Any]:
    last = max((row["position"] for row in rows), default=-1)
    if last >= len(tokens):
        raise GraphError(f"a node stands at position {last}, but prompt_tokens has {len(tokens)}")
    known = {
        key: metadata[key]
        for key in ("slug", "scan", "info", "generation_settings", "pruning_settings")
        if key in metadata
    }
    layers = 1 + max((r["layer"] for r in rows if r["kind"] != NodeKind.LOGIT), default=-1)
    return {
        "prompt": str(metadata.get("prompt") or ""),
        "tokens": tokens,
        "model": str(metadata.get("scan") or ""),
        "layers": layers,
        "imported": known,
    }


def _listed(value: object) -> list[Any]:
    """A list, or the JSON text of one as circuit-tracer's page saves it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return value if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    """Texts of a list, or of a text with commas between."""
    if isinstance(value, str):
        found = _listed(value) if value.startswith("[") else value.split(",")
    else:
        found = _listed(value)
    return [one.strip() for one in found if isinstance(one, str) and one.strip()]


def _number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if isfinite(found) else None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(value: object) -> int | None:
    """A whole number, also as text."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 62:
        return None
    return value
