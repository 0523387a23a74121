"""Graphs as the attribution-graph JSON of Neuronpedia and of circuit-tracer's front end.

Both read one schema (`tests/data/attribution_graph/graph-schema.json`) and differ in what it does
not say: how features are numbered, and where their details come from. What the schema has no place
for stands under `x_tracer`, which other readers ignore: whoever reads the file here gets back the
graph that was written.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from graphs import words
from graphs.edges import STABILITY
from graphs.exchange import attention_json
from graphs.groups import Group, to_json
from graphs.schema import GraphError, NodeKind

PROFILES = ("neuronpedia", "self-hosted", "circuit-tracer")
"""Neuronpedia with its own dashboards, Neuronpedia with features from elsewhere, circuit-tracer."""
OWN = "x_tracer"
TYPES = {
    NodeKind.EMBEDDING: "embedding",
    NodeKind.ERROR: "mlp reconstruction error",
    NodeKind.FEATURE: "cross layer transcoder",
    NodeKind.LOGIT: "logit",
}
ATTENTION_TYPES = {NodeKind.FEATURE: "lorsa", NodeKind.ERROR: "lorsa error"}
"""Of what stands at an attention output."""
LOCAL = "/local"
"""A path: circuit-tracer's page then asks its own server for features, `--features_dir`, and nobody
else; any other name is a repository at Hugging Face to it."""
PADDED = 100_000
"""Features a layer that the old numbering, layer and five digits, can tell apart."""


@dataclass(frozen=True, slots=True)
class About:
    """What the web tools want to know that a graph does not say."""

    slug: str
    """Name of the graph: letters, digits, `_ . -`."""
    scan: str | None = None
    """Neuronpedia: its id of the model; None: the graph's own model. circuit-tracer: the hub
    repository from which its page fetches features; None: its own server."""
    source_set: str | None = None
    """Neuronpedia's name of the dictionaries, for its dashboards."""
    feature_url: str | None = None
    """Where `self-hosted` features lie, https, a file `<number>.json` each."""


def cantor(layer: int, index: int) -> int:
    """One number for a layer and a feature, as circuit-tracer's schema version 1 has it.

    >>> cantor(3, 311), uncantor(cantor(3, 311))
    (49766, (3, 311))
    """
    return (layer + index) * (layer + index + 1) // 2 + index


def uncantor(number: int) -> tuple[int, int]:
    """Layer and feature of a Cantor number; exact at any size.

    Returns:
        Layer and number in its dictionary.
    """
    total = (_root(8 * number + 1) - 1) // 2
    index = number - total * (total + 1) // 2
    return total - index, index


def _root(value: int) -> int:
    from math import isqrt

    return isqrt(value)


def attribution_json(
    tables: tuple[pa.Table, pa.Table, Mapping[str, Any]],
    groups: Sequence[Group],
    pins: Sequence[str],
    profile: str,
    about: About,
    attention: Mapping[str, pa.Table] | None = None,
    whole: pa.Table | None = None,
) -> bytes:
    """A graph for one of `PROFILES`.

    Args:
        tables: nodes, edges and metadata.
        groups: of the nodes; `supernodes` of the file.
        pins: ids of nodes pinned in a viewer.
        profile: who is to read it.
        about: names.
        attention: tables about it (`graphs.attention_tables`).
        whole: nodes of the graph before it was pruned, to name those that only attention names.

    Returns:
        JSON, UTF-8, without spaces.

    Raises:
        GraphError: an unknown profile, a name the tools refuse, or a graph they cannot show.
    """
    nodes, edges, metadata = tables
    rows = nodes.to_pylist()
    _check(profile, about, rows)
    ids = [row["id"] for row in rows]
    last = 1 + max((row["layer"] for row in rows if row["kind"] != NodeKind.LOGIT), default=-1)
    tokens = _tokens(rows, metadata)
    shown = _Shown(tokens, _numbering(profile, rows), last, profile, about)
    value = {
        "metadata": _metadata(metadata, tokens, profile, about) | _threshold(rows, metadata),
        "qParams": {
            "pinnedIds": [name for name in pins if name in set(ids)],
            "supernodes": [[one.name, *one.members] for one in groups],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": _with_target([shown.node(row) for row in rows]),
        "links": _links(edges, ids),
        OWN: _own(nodes, edges, metadata, groups),
    }
    if attention:
        _add_attention(value, attention, (nodes, nodes if whole is None else whole), shown)
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _links(edges: pa.Table, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Edges between ids; other readers ignore how stable they are."""
    names = [name for name in ("weight", STABILITY) if name in edges.column_names]
    return [
        {"source": ids[edge["source"]], "target": ids[edge["target"]]}
        | {name: edge[name] for name in names}
        for edge in edges.to_pylist()
    ]


@dataclass(frozen=True, slots=True)
class _Shown:
    """How nodes are put into words and numbers."""

    tokens: list[str]
    numbers: str
    last: int
    profile: str
    about: About

    def node(self, row: dict[str, Any]) -> dict[str, Any]:
        """A node of the file."""
        layer = _layer(row, self.last, self.profile, self.about)
        return _node(row, self.tokens, self.numbers, layer)


def _with_target(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first logit alone is the target, as circuit-tracer has it."""
    for node in nodes:
        if node["feature_type"] == TYPES[NodeKind.LOGIT]:
            node["is_target_logit"] = True
            break
    return nodes


def _threshold(rows: list[dict[str, Any]], metadata: Mapping[str, Any]) -> dict[str, float]:
    """At which front ends open: low enough to prune, high enough to show every node kept."""
    if not metadata.get("pruned"):
        return {}
    kept = [row["cumulative_influence"] or 0.0 for row in rows if row["kind"] != NodeKind.LOGIT]
    return {"node_threshold": max(metadata["pruned"]["nodes"], *kept, 0.0)}


def _add_attention(
    value: dict[str, Any],
    attention: Mapping[str, pa.Table],
    nodes: tuple[pa.Table, pa.Table],
    shown: _Shown,
) -> None:
    """Add what is known of attention to nodes, links and beside them."""
    heads = attention_json.link_heads(attention)
    for link in value["links"]:
        if found := heads.get((link["source"], link["target"])):
            link["x_heads"] = found
    known = {node["node_id"]: node for node in value["nodes"]}
    every = attention_json.qk_tracing_results(attention)
    results = {name: result for name, result in every.items() if name in known}
    for name, result in results.items():
        known[name]["qk_tracing_results"] = result
    if results:
        kept = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp",
                "activation")  # fmt: skip
        named = attention_json.qk_only_nodes(results, nodes[0])
        value["qk_only_nodes"] = {
            row["id"]: {key: shown.node(row)[key] for key in kept}
            for row in attention_json.descriptors(named, nodes[1])
        }
    value[OWN]["attention"] = attention_json.tables_json(attention)


def _check(profile: str, about: About, rows: list[dict[str, Any]]) -> None:
    if profile not in PROFILES:
        raise GraphError(f"profile is {profile!r}, expected one of {', '.join(PROFILES)}")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", about.slug):
        raise GraphError(f"slug is {about.slug!r:.80}: expected letters, digits and _ . - only")
    if profile == "neuronpedia" and not about.source_set:
        raise GraphError("Neuronpedia finds features by the name of its source set: name it "
                         "(--source-set), or export for self-hosted features")  # fmt: skip
    if about.feature_url and not about.feature_url.startswith("https://"):
        raise GraphError(f"feature_url is {about.feature_url!r:.80}: expected https://")
    highest = max((row["layer"] for row in rows if row["kind"] != NodeKind.LOGIT), default=-1)
    if profile != "circuit-tracer" and highest < 1:
        raise GraphError(
            "Neuronpedia shows no graph whose nodes are all in layer 0: keep more of it "
            "(--nodes 1), or export for circuit-tracer"
        )


def _tokens(rows: list[dict[str, Any]], metadata: Mapping[str, Any]) -> list[str]:
    known = metadata.get("tokens")
    if isinstance(known, list):
        return known
    texts = {row["position"]: row["text"] for row in rows if row["kind"] == NodeKind.EMBEDDING}
    count = 1 + max((row["position"] for row in rows), default=-1)
    return [texts.get(at) or "" for at in range(count)]


def _numbering(profile: str, rows: list[dict[str, Any]]) -> str:
    """`cantor`, or `padded` for files named by layer and five digits where those are enough."""
    fits = all((row["feature"] or 0) < PADDED for row in rows)
    return "padded" if profile == "self-hosted" and fits else "cantor"


def _layer(row: dict[str, Any], last: int, profile: str, about: About) -> str:
    if row["kind"] == NodeKind.EMBEDDING:
        return "E"
    if row["kind"] == NodeKind.LOGIT:
        return str(last + 1)
    counted_from_one = profile == "neuronpedia" and about.scan == "gpt2-small"
    return str(row["layer"] + counted_from_one)


def _node(row: dict[str, Any], tokens: list[str], numbers: str, layer: str) -> dict[str, Any]:
    kind, at = row["kind"], row["position"]
    inside = str(row["site"]).startswith("attn_out")
    types = ATTENTION_TYPES if inside else TYPES
    found: dict[str, Any] = {
        "node_id": row["id"],
        "jsNodeId": f"{row['id']}-0",
        "feature": _feature(row, numbers),
        "layer": layer,
        "ctx_idx": at,
        "feature_type": types.get(NodeKind(kind), "unknown"),
        "token_prob": row["probability"] or 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": _clerp(row, tokens),
        "influence": row["cumulative_influence"],
        "activation": row["activation"],
    }
    return found


def _feature(row: dict[str, Any], numbers: str) -> int:
    """Never null, at which circuit-tracer's page stops."""
    if row["kind"] == NodeKind.FEATURE:
        layer, index = row["layer"], row["feature"] or 0
        return cantor(layer, index) if numbers == "cantor" else layer * PADDED + index
    if row["kind"] == NodeKind.EMBEDDING:
        return int(row["position"])
    if row["kind"] == NodeKind.LOGIT:
        return int(row["token"]) if row["token"] is not None else int(_middle(row["id"]))
    return -1


def _middle(name: str) -> str:
    """The number in the middle of an id such as `5_1027_8`."""
    parts = name.split("_")
    return parts[1] if len(parts) == 3 and parts[1].isdigit() else "0"


def _clerp(row: dict[str, Any], tokens: list[str]) -> str:
    """What the tools show; of a target they take what stands between the first two quotes."""
    token = tokens[row["position"]] if row["position"] < len(tokens) else ""
    if row["kind"] == NodeKind.LOGIT:
        text = row["text"] if row["text"] is not None else row["label"] or row["id"]
        return f'Output "{_unquoted(text)}" (p={row["probability"] or 0:.3f})'
    if row["kind"] == NodeKind.EMBEDDING:
        return f'Emb: "{_unquoted(row["text"] or token)}"'
    if row["kind"] == NodeKind.ERROR:
        return f'Err: "{_unquoted(token)}"'
    return feature_clerp(row, token)


def feature_clerp(row: Mapping[str, Any], token: str) -> str:
    """A feature's label; of one without, its place and its token, so that lists can name it.

    >>> feature_clerp({"layer": 2, "feature": 311, "label": "· is"}, " is")
    'L2/311 · is'
    """
    label = str(row["label"] or "")
    if words.label_parts(label)[0]:
        return label
    return f"{unlabelled(row['layer'], row['feature'])}{words.token(token)}"


def unlabelled(layer: int, feature: int | None) -> str:
    """How the clerp of a feature without a label begins."""
    return f"L{layer}/{feature} · "


def _unquoted(text: str) -> str:
    return text.replace('"', "\N{RIGHT DOUBLE QUOTATION MARK}")


def _metadata(
    metadata: Mapping[str, Any], tokens: list[str], profile: str, about: About
) -> dict[str, Any]:
    model = str(metadata.get("model") or "unknown").rpartition("/")[2]
    pruned = metadata.get("pruned") or {}
    version = str((metadata.get("versions") or {}).get("tracer") or "")
    found: dict[str, Any] = {
        "slug": about.slug,
        "scan": about.scan or (LOCAL if profile == "circuit-tracer" else model),
        "prompt_tokens": [words.visible(token) if not token.isprintable() else token
                          for token in tokens],
        "prompt": str(metadata.get("prompt") or "".join(tokens)),
        "info": {"generator": {"name": "tracer", "version": version}},
    }  # fmt: skip
    if pruned:
        found["pruning_settings"] = {
            "node_threshold": pruned["nodes"],
            "edge_threshold": pruned["edges"],
        }
    scores = metadata.get("scores") or {}
    for name in ("replacement", "completeness"):
        if isinstance(scores.get(name), float):
            found[f"{name}_score"] = scores[name]
    if profile != "self-hosted":
        found["schema_version"] = 1
    if profile == "circuit-tracer":
        found["transcoder_list"] = []
    if profile == "neuronpedia":
        found["feature_details"] = {"neuronpedia_source_set": about.source_set}
    elif profile == "self-hosted" and about.feature_url:
        found["feature_details"] = {"feature_json_base_url": about.feature_url}
    return found


def _own(
    nodes: pa.Table, edges: pa.Table, metadata: Mapping[str, Any], groups: Sequence[Group]
) -> dict[str, Any]:
    """What the schema has no place for."""
    columns = {
        name: {"type": str(nodes[name].type), "values": nodes[name].to_pylist()}
        for name in nodes.column_names
        if name != "id"
    }
    kept = {key: value for key, value in metadata.items() if key != "scores"}
    return {
        "format": 1,
        "metadata": kept,
        "columns": columns,
        "weights": str(edges["weight"].type),
        "groups": to_json(groups),
    }
