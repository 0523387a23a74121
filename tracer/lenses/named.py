"""Named tokens, followed layer by layer: their rank, and where the answer overtakes them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.sites import Site

NAMED = pa.schema(
    [
        *(("token", pa.int32()), ("name", pa.string()), ("site", pa.string())),
        *(("layer", pa.int32()), ("position", pa.int32()), ("rank", pa.int32())),
        *(("probability", pa.float64()), ("logit", pa.float64()), ("lead", pa.float64())),
        ("leader", pa.string()),
    ]
)
OVERTAKEN = pa.schema(
    [
        *(("token", pa.int32()), ("name", pa.string()), ("best_rank", pa.int32())),
        *((name, pa.string()) for name in ("best_site", "ahead_until", "overtaken_at", "by")),
        ("leads_from", pa.string()),
    ]
)


def named_rows(
    model: ReplacementModel,
    site: Site,
    logits: Float[Tensor, "positions vocabulary"],
    answers: Int[Tensor, " positions"],
    tokens: Sequence[int],
) -> pa.Table:
    """How named tokens stand at one site.

    Args:
        model: names tokens.
        site: where.
        logits: as the lens reads them there.
        answers: what the model itself answers at each position.
        tokens: whose standing.

    Returns:
        Columns of `NAMED`, a row a token and position.
    """
    odds = logits.double().softmax(-1)
    leaders = [model.token_string(token) for token in logits.argmax(-1).tolist()]
    against = logits.gather(1, answers[:, None])[:, 0]
    every, rows = range(len(logits)), []
    for token in tokens:
        own = logits[:, token]
        rows += [
            {
                "token": token,
                "name": model.token_string(token),
                "site": str(site),
                "layer": site.layer,
                "position": position,
                "rank": 1 + int((logits[position] > own[position]).sum()),
                "probability": float(odds[position, token]),
                "logit": float(own[position]),
                "lead": float(own[position] - against[position]),
                "leader": leaders[position],
            }
            for position in every
        ]
    return pa.Table.from_pylist(rows, schema=NAMED)


def overtakings(named: pa.Table, position: int) -> pa.Table:
    """Where, on the way up, the model's answer passes each named token.

    Args:
        named: a row a token, site and position, sites from below.
        position: where the answer is read.

    Returns:
        Columns of `OVERTAKEN`, a row a token.
    """
    by_token: dict[int, list[dict[str, Any]]] = {}
    for row in named.to_pylist():
        if row["position"] == position:
            by_token.setdefault(row["token"], []).append(row)
    return pa.Table.from_pylist([_story(rows) for rows in by_token.values()], schema=OVERTAKEN)


def _story(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One token's way up."""
    best = min(rows, key=lambda row: row["rank"])
    ahead = [index for index, row in enumerate(rows) if row["lead"] > 0]
    last = ahead[-1] if ahead else None
    after = None if last is None or last + 1 == len(rows) else rows[last + 1]
    behind = [index for index, row in enumerate(rows) if row["rank"] > 1]
    first = behind[-1] + 1 if behind else 0
    return {
        "token": best["token"],
        "name": best["name"],
        "best_rank": best["rank"],
        "best_site": best["site"],
        "ahead_until": None if last is None else rows[last]["site"],
        "overtaken_at": None if after is None else after["site"],
        "by": None if after is None else after["leader"],
        "leads_from": rows[first]["site"] if first < len(rows) else None,
    }
