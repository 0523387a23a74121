"""Graphs written by earlier releases, brought up to the present format."""

from typing import Any

import pyarrow as pa

from graphs.node_sites import filled


def upgraded(nodes: pa.Table, metadata: dict[str, Any]) -> pa.Table:
    """The node table with what later versions added.

    Version 1 had no sites: features and errors stood at MLPs, and targets read the logits or the
    stream entering the layer that the settings name.

    Returns:
        One row a node; the same table where nothing is missing.
    """
    names = nodes.column_names
    whole = names.count("kind") == names.count("layer") == 1
    if metadata.get("format_version") != 1 or "site" in names or not whole:
        return nodes
    sites = filled({name: nodes[name] for name in ("kind", "layer")})["site"]
    logits = [row for row, kind in enumerate(nodes["kind"].to_pylist()) if kind == "logit"]
    for row, target in zip(logits, _targets(metadata), strict=False):
        if isinstance(target, dict) and isinstance(target.get("layer"), int):
            sites[row] = f"resid_pre.{target['layer']}"
    return nodes.add_column(names.index("layer") + 1, "site", pa.array(sites, pa.string()))


def _targets(metadata: dict[str, Any]) -> list[Any]:
    """Targets as the user named them, in node order."""
    settings = metadata.get("settings")
    named = settings.get("targets") if isinstance(settings, dict) else None
    return named if isinstance(named, list) else []
