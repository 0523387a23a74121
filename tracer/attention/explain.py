"""`explain_attention`: why a head of the model's own looked where it did, by nodes.

A score is bilinear: scaling · q(query) · k(key), each the sum of what every node makes of it.
Marginals hold one side as it is and split the other; pairs split both. Softmax ignores what all
scores share, so what is explained by default is the key's score less the others', weighted by the
attention they get: its log-odds against them, on average.

Source: Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions".
"""

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from graphs import AttributionGraph
from graphs.attention_tables import LEFT
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.attention.explained import (
    Explained,
    chosen_head,
    chosen_layer,
    chosen_position,
    explained,
)
from tracer.attention.explanation import CONTRASTS, AttentionExplanation
from tracer.attention.marginals import Side, marginals
from tracer.attention.pairs import LEAF, strongest
from tracer.attention.pairs import pairs as pairs_of
from tracer.attention.sources import LEAVES
from tracer.attention.spot import Spot, spot_of
from tracer.errors import TraceError

SINK = "sink"


@one_call()
@torch.no_grad()
def explain_attention(  # noqa: PLR0913  keyword arguments are the public interface
    model: ReplacementModel,
    graph: AttributionGraph,
    *,
    layer: int,
    head: int,
    query: int,
    key: int | None = None,
    contrast: str = "odds",
    top: int = 10,
    pairs: bool = False,
) -> AttentionExplanation:
    """Explain one attention score of the model's own head by the nodes on both of its sides.

    Args:
        model: the model the graph was traced from.
        graph: pruned or not; only its prompt and settings matter.
        layer: of the head.
        head: its number in the layer.
        query: position that looks; negative counts from the end.
        key: position looked at; None is the one that gets most attention.
        contrast: "odds" explains the log-odds against the other keys, "plain" the score less the
            mean of all keys by attention, "score" the score alone.
        top: nodes listed a side, and pairs formed among them.
        pairs: also form pairs.

    Returns:
        Marginals of all nodes that exist, those beyond a graph's cap included, strongest first;
        pairs if asked for.

    Raises:
        TraceError: the graph is of another model; a layer, head or position does not exist; the key
            is hidden from the query; there is no other key to compare with.
    """
    if contrast not in CONTRASTS:
        raise TraceError(f"contrast is {contrast!r}, expected one of {', '.join(CONTRASTS)}")
    if top < 1:
        raise TraceError(f"top is {top}, expected 1 or more")
    chosen_head(model, chosen_layer(model, layer), head)
    about = explained(model, graph)
    query = chosen_position(about.local.positions, query, "query")
    place = about.query_keys([layer])[layer]
    reached = place.scores()
    spot = spot_of(about, reached.scores, (layer, head, query, key), contrast)
    sides = marginals(about, place, reached, spot)
    formed = pairs_of(about, place, reached, spot, sides, top) if pairs else None
    return _told(about, spot, sides, formed, top)


def _told(
    about: Explained,
    spot: Spot,
    sides: tuple[Side, Side],
    formed: pa.Table | None,
    top: int,
) -> AttentionExplanation:
    whole = spot.explained
    sizes = [float(side.sources.abs().sum() + side.constants.abs().sum()) for side in sides]
    scale = float(spot.raw[spot.scores.visible[spot.query]].abs().max()) or 1.0
    wrong = max(abs(side.total + spot.sink - whole) for side in sides) / scale
    capped = spot.scores.capped(spot.raw)
    tables = [_table(about, side, spot, top) for side in sides]
    return AttentionExplanation(
        layer=spot.layer,
        head=spot.head,
        query=spot.query,
        key=spot.key,
        contrast=spot.contrast,
        score=float(spot.raw[spot.key]),
        capped=float(capped[spot.key]),
        pattern=float(spot.pattern[spot.key]),
        explained=whole,
        log_odds=spot.log_odds,
        sink=spot.sink,
        cancellation=max(sizes) / abs(whole) if whole else float("inf"),
        residual=wrong,
        q=tables[0],
        k=tables[1],
        by_position=_by_position(about, sides, spot),
        heads=_heads(sides),
        pairs=formed,
        keys=_keys(spot, capped),
    )


def _table(about: Explained, side: Side, spot: Spot, top: int) -> pa.Table:
    """The strongest nodes of one side, constants and a sink always, and the rest."""
    names = about.ids
    listed = strongest(side.sources, top)
    rows: list[tuple[str, int | None, float]] = [
        (names[at], int(about.position[at]), float(side.sources[at])) for at in listed
    ]
    rows += [
        (f"{LEAF}.{leaf}", None, float(value))
        for leaf, value in zip(LEAVES, side.constants, strict=True)
    ]
    if spot.sink:
        rows.append((SINK, None, spot.sink))
    rows.sort(key=lambda row: -abs(row[2]))
    left = side.sources.double().sum() - side.sources[listed].double().sum()
    rows.append((LEFT, None, float(left)))
    kinds = {"node": pa.string(), "position": pa.int32(), "weight": pa.float64()}
    columns = zip(kinds.items(), zip(*rows, strict=True), strict=True)
    return pa.table({name: pa.array(list(part), kind) for (name, kind), part in columns})


def _heads(sides: tuple[Side, Side]) -> pa.Table:
    rows = [
        (name, layer, head, value)
        for name, side in zip(("q", "k"), sides, strict=True)
        for layer, heads in enumerate(side.heads)
        for head, value in enumerate(heads.tolist())
    ]
    rows.sort(key=lambda row: (row[0] != "q", -abs(row[3])))
    kinds = {"side": pa.string(), "layer": pa.int32(), "head": pa.int32(), "weight": pa.float64()}
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    parts = zip(kinds.items(), columns, strict=True)
    return pa.table({name: pa.array(list(part), kind) for (name, kind), part in parts})


def _by_position(about: Explained, sides: tuple[Side, Side], spot: Spot) -> pa.Table:
    position = torch.from_numpy(about.position).to(sides[0].sources.device)
    rows: list[tuple[str, int | None, float]] = []
    for name, side in zip(("q", "k"), sides, strict=True):
        sums = torch.zeros(about.local.positions, dtype=torch.float64, device=position.device)
        sums.index_add_(0, position, side.sources.double())
        rows += [(name, at, value) for at, value in enumerate(sums.tolist())]
        rows.append((name, None, float(side.constants.double().sum()) + spot.sink))
    which, place, weight = zip(*rows, strict=True)
    return pa.table(
        {
            "side": pa.array(which, pa.string()),
            "position": pa.array(place, pa.int32()),
            "weight": pa.array(weight, pa.float64()),
        }
    )


def _keys(spot: Spot, capped: Float[Tensor, " keys"]) -> pa.Table:
    seen = spot.scores.visible[spot.query].nonzero()[:, 0].tolist()
    return pa.table(
        {
            "key": pa.array(seen, pa.int32()),
            "score": pa.array(spot.raw[seen].tolist(), pa.float64()),
            "capped": pa.array(capped[seen].tolist(), pa.float64()),
            "pattern": pa.array(spot.pattern[seen].tolist(), pa.float64()),
        }
    )
