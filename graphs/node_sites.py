"""Where nodes stand: names of places in a forward pass, their order, and the bands of a picture.

`embed` (what tokens write), `attn_out.3` and `mlp_out.3` (what attention and MLP of layer 3 add to
the residual stream: features and errors stand there), `resid_pre.3` and `resid_mid.3` (the stream
entering layer 3, and between its attention and MLP: a target may read there), `logits`. Nodes
stand in the order of their sites, targets last.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

EMBED, LOGITS = "embed", "logits"
STAGES = ("resid_pre", "attn_out", "resid_mid", "mlp_out")
"""Of one layer, in the order they are passed."""
WRITTEN = ("attn_out", "mlp_out")
"""Where features and errors can stand."""
_NAME = re.compile(rf"({'|'.join(STAGES)})\.(\d{{1,9}})")


def rank(site: str) -> tuple[int, int]:
    """What sites sort by.

    Returns:
        Layer and stage; (-2, 0) for a name that is no site.

    >>> sorted(["mlp_out.10", "logits", "mlp_out.2", "attn_out.2", "embed"], key=rank)
    ['embed', 'attn_out.2', 'mlp_out.2', 'mlp_out.10', 'logits']
    """
    ends = {EMBED: (-1, 0), LOGITS: (np.iinfo(np.int64).max, 0)}
    match = _NAME.fullmatch(site)
    return (int(match[2]), STAGES.index(match[1])) if match else ends.get(site, (-2, 0))


def usual(kind: str, layer: int | None) -> str:
    """Where a node of some kind and layer stands if nobody says otherwise."""
    return {"embedding": EMBED, "logit": LOGITS}.get(kind, f"mlp_out.{layer}")


def filled(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Node columns with a site for every node that has none.

    Args:
        columns: name -> one entry a node, kind and layer among them.

    Returns:
        The same columns and `site`, one entry a node.
    """
    if "kind" not in columns or "layer" not in columns:
        return dict(columns)
    kinds, layers = (_listed(columns[name]) for name in ("kind", "layer"))
    sites = _listed(columns.get("site", [None] * len(kinds)))
    if not len(kinds) == len(layers) == len(sites):
        return dict(columns)
    found = [
        usual(kind, layer) if site is None else site
        for kind, layer, site in zip(kinds, layers, sites, strict=True)
    ]
    return {**columns, "site": found}


def _listed(values: Any) -> list[Any]:
    """A column as plain Python values."""
    return values.to_pylist() if isinstance(values, pa.ChunkedArray | pa.Array) else list(values)


def misplaced(kinds: Sequence[str], layers: Sequence[int], sites: Sequence[str]) -> str | None:
    """What is wrong with the sites of some nodes, in node order.

    Returns:
        One line; None where all are right.
    """
    before = (-1, 0)
    for row, (kind, layer, site) in enumerate(zip(kinds, layers, sites, strict=True)):
        expected, place = _expected(kind, layer), rank(site)
        if place < (-1, 0) or (expected and site not in expected):
            known = expected or [EMBED, LOGITS, *(f"{stage}.L" for stage in STAGES)]
            return (
                f"node {row}, {kind} of layer {layer}, has site {site!r}: expected "
                f"{' or '.join(known)}"
            )
        if kind != "logit" and place < before:
            return f"node {row} at {site} comes too late: list nodes in computation order"
        before = before if kind == "logit" else place
    return None


def _expected(kind: str, layer: int) -> list[str]:
    """Sites that nodes of a kind and layer may have; empty for any."""
    if kind in ("feature", "error"):
        return [f"{stage}.{layer}" for stage in WRITTEN]
    return [EMBED] if kind == "embedding" else []


def bands(sites: Iterable[str], layers: int) -> dict[str, str]:
    """The rows of a picture, an MLP for every layer.

    Returns:
        Site -> name of its row, from below.

    >>> list(bands(["embed", "attn_out.1", "mlp_out.1", "logits"], layers=2).values())
    ['Tokens', 'L0', 'L1 attention', 'L1', 'Logits']
    """
    every = {f"mlp_out.{layer}" for layer in range(layers)}
    every |= {site for site in sites if site.partition(".")[0] in WRITTEN}
    names = {site: f"L{site.partition('.')[2]}" for site in sorted(every, key=rank)}
    names = {
        site: f"{name} attention" if site.startswith("attn_out") else name
        for site, name in names.items()
    }
    return {EMBED: "Tokens", **names, LOGITS: "Logits"}
