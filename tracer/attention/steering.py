"""`keep_attention`: a graph that knows what steers its attention, so that pruning can keep it.

Edges say what went through heads, not what made heads look there: pruning by their influence drops
the nodes that set queries, keys and norms, and with attention made anew the rest falls apart. What
those nodes do to the first order (`effects.py`) is stored beside the graph as the table
`steering`; `graphs.prune.prune_steered` adds its size to that of the edges.
"""

from dataclasses import replace

from graphs import AttributionGraph, steering
from graphs.schema import plain_metadata
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.attention.effects import attention_effects
from tracer.errors import TraceError


@one_call()
def keep_attention(model: ReplacementModel, graph: AttributionGraph) -> AttributionGraph:
    """The same graph, pruned from now on so that what steers attention and norms is kept.

    Influence then runs along |effect| + |first-order effect through attention scores| + |through
    norm denominators|, rows scaled over all three; columns and scores are as before.

    Args:
        model: the model the graph was traced from.
        graph: unpruned; what pruning dropped could not be kept any more.

    Returns:
        The graph with the table `steering` (units of the effects) and the setting `keep_attention`,
        which `AttributionGraph.prune` and `tracer.validate` follow.

    Raises:
        TraceError: the graph is pruned, of another model, a target is a direction, or the model
            forms its scores in a way that is not known.
    """
    if "pruned" in graph.metadata:
        raise TraceError(
            "graph is pruned, and what steered its attention may be gone; give the unpruned graph "
            "that trace returned"
        )
    found = attention_effects(model, graph)
    settings = graph.metadata["settings"] | {"keep_attention": True}
    known = graph.with_tables({steering.NAME: steering.table(found.attention, found.norms)})
    return replace(known, metadata=plain_metadata(graph.metadata | {"settings": settings}))
