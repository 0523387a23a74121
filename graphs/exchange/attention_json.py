"""What is known of attention, in the fields that web JSON has for it.

The exporter of the attribution-graph JSON adds these to nodes and links: `qk_tracing_results` to
the node that an explained head carried most to, descriptors of nodes that only explanations name
under `qk_only_nodes`, and `x_heads` to links. Both signs are kept, largest sizes first. The tables
themselves go along as they are, for whoever reads the file here.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import pyarrow as pa

from graphs.attention_tables import COLUMNS, LEFT, check, edge_ends
from graphs.schema import GraphError, NodeKind

NO_NODES = ("constant.", "sink", LEFT)
"""What stands in place of nodes and has no id of its own in a graph."""
Tables = Mapping[str, pa.Table]
PLACE = re.compile(r"(E|\d{1,9})(a?)_(-?\d{1,12})_(\d{1,9})")
"""A node's id: layer or E, number, position."""


def qk_tracing_results(tables: Tables) -> dict[str, dict[str, list[list[Any]]]]:
    """Explanations of heads by the node that each carried most to.

    Args:
        tables: about attention; without `heads` nothing says which node a head carried to.

    Returns:
        Node id -> `pair_wise_contributors` ([q id, k id, weight]), `top_q_marginal_contributors`
        and `top_k_marginal_contributors` ([id, weight]), in units of scores. Of several
        explanations for one node the head that carried most counts.
    """
    if "heads" not in tables or "attention" not in tables:
        return {}
    targets = _targets(tables["heads"])
    best: dict[str, tuple[float, int]] = {}
    for row in tables["attention"].to_pylist():
        place = (row["layer"], row["head"], row["query"], row["key"])
        if place in targets:
            target, loading = targets[place]
            best[target] = max(best.get(target, (0.0, -1)), (loading, row["explanation"]))
    return {target: _results(tables, number) for target, (_, number) in best.items()}


def _targets(heads: pa.Table) -> dict[tuple[int, int, int, int], tuple[str, float]]:
    """The node that each cell carried most to, and how much."""
    found: dict[tuple[int, int, int, int], tuple[str, float]] = {}
    for row in heads.to_pylist():
        place = (row["layer"], row["head"], row["query"], row["key"])
        if row["query"] is not None and abs(row["loading"]) > found.get(place, ("", 0.0))[1]:
            found[place] = (edge_ends(row["edge"])[1], abs(row["loading"]))
    return found


def _results(tables: Tables, number: int) -> dict[str, list[list[Any]]]:
    sides: dict[str, list[list[Any]]] = {"q": [], "k": []}
    for row in tables["attention_marginals"].to_pylist():
        if row["explanation"] == number and not row["node"].startswith(NO_NODES):
            sides[row["side"]].append([row["node"], row["weight"]])
    pairs = [
        [row["node_q"], row["node_k"], row["weight"]]
        for row in tables["attention_pairs"].to_pylist()
        if row["explanation"] == number
        and not row["node_q"].startswith(NO_NODES)
        and not row["node_k"].startswith(NO_NODES)
    ]
    return {
        "pair_wise_contributors": _sorted(pairs),
        "top_q_marginal_contributors": _sorted(sides["q"]),
        "top_k_marginal_contributors": _sorted(sides["k"]),
    }


def _sorted(rows: list[list[Any]]) -> list[list[Any]]:
    return sorted(rows, key=lambda row: -abs(row[-1]))


def qk_only_nodes(
    results: Mapping[str, Mapping[str, list[list[Any]]]], nodes: pa.Table
) -> list[str]:
    """Ids that explanations name and the graph does not have.

    Returns:
        In sorted order; the exporter gives each a descriptor under `qk_only_nodes`.
    """
    named = {
        name
        for result in results.values()
        for rows in result.values()
        for row in rows
        for name in row[:-1]
    }
    return sorted(named - set(nodes["id"].to_pylist()))


def descriptors(names: Sequence[str], whole: pa.Table) -> list[dict[str, Any]]:
    """Nodes that a graph does not have.

    Args:
        names: their ids.
        whole: the node table of the graph before it was pruned, which has labels and activations.

    Returns:
        A row each, as of the node table: kind, layer, position, feature, token, site from the id;
        label, text and activation from `whole`, where it has the node. A feature without a label
        is called by its number.

    Raises:
        GraphError: an id names no node.
    """
    import pyarrow.compute as pc

    said = ("id", "label", "text", "activation")
    mask = pc.is_in(whole["id"], pa.array(names, pa.string()))
    known = {row["id"]: row for row in whole.filter(mask).select(said).to_pylist()}
    return [described(name) | _named(known.get(name, {}), name) for name in names]


def _named(row: dict[str, Any], name: str) -> dict[str, Any]:
    found = PLACE.fullmatch(name)
    assert found is not None
    if found[1] == "E" or found[3] == "-1" or row.get("label"):
        return row
    return row | {"label": f"feature {found[3]} of layer {found[1]}"}


def described(name: str) -> dict[str, Any]:
    """What an id alone tells of a node that the graph does not have.

    Returns:
        Column -> value, as a row of the node table: kind, layer, position, feature, token, site.

    Raises:
        GraphError: the id names no node.
    """
    found = PLACE.fullmatch(name)
    if found is None:
        raise GraphError(f"an explanation of attention names {name!r:.60}, which is no node's id")
    number, position = int(found[3]), int(found[4])
    row: dict[str, Any] = dict.fromkeys(
        ("feature", "token", "text", "label", "probability", "cumulative_influence", "activation")
    )
    row |= {"id": name, "position": position}
    if found[1] == "E":
        return row | {"kind": NodeKind.EMBEDDING, "layer": -1, "token": number, "site": "embed"}
    site = f"{'attn_out' if found[2] else 'mlp_out'}.{found[1]}"
    kind = NodeKind.ERROR if number == -1 else NodeKind.FEATURE
    feature = None if number == -1 else number
    return row | {"kind": kind, "layer": int(found[1]), "feature": feature, "site": site}


def tables_json(tables: Tables) -> dict[str, dict[str, list[Any]]]:
    """The tables as JSON.

    Returns:
        Name -> column -> values; numbers that JSON has none for are texts.
    """
    return {
        name: {
            column: [_plain(value) for value in table[column].to_pylist()]
            for column in table.column_names
        }
        for name, table in sorted(tables.items())
    }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def tables_from_json(value: object) -> dict[str, pa.Table]:
    """The tables that `tables_json` made.

    Returns:
        Name -> table; nothing where `value` is None.

    Raises:
        GraphError: it is no such JSON.
    """
    found = {}
    try:
        for name, columns in dict(value or {}).items():  # type: ignore[call-overload]
            kinds = COLUMNS[name]
            found[name] = pa.table(
                {
                    column: pa.array([_number(one, kind) for one in columns[column]], kind)
                    for column, kind in kinds.items()
                }
            )
        check(found)
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise GraphError(f"tables about attention are torn: {error!r:.80}") from error
    return found


def _number(value: object, kind: pa.DataType) -> object:
    return float(value) if isinstance(value, str) and pa.types.is_floating(kind) else value


def link_heads(tables: Tables) -> dict[tuple[str, str], list[list[Any]]]:
    """`x_heads` of every link whose edge was split.

    Returns:
        (source id, target id) -> [layer, head, loading] of every head listed, in units of the edge;
        each layer is a split of its own.
    """
    found: dict[tuple[str, str], list[list[Any]]] = defaultdict(list)
    if "heads" in tables:
        for row in tables["heads"].to_pylist():
            if row["query"] is None and row["head"] >= 0:
                found[edge_ends(row["edge"])].append([row["layer"], row["head"], row["loading"]])
    for rows in found.values():
        rows.sort(key=lambda row: (row[0], -abs(row[2])))
    return dict(found)
