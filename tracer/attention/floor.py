"""What heads carry at the lowest layer that a source passes, where sources are few.

Every source stands at one position there. A head's maps give the same wherever they are applied:
to what rows weigh its output with at every position, or once to each source.
"""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tracer.attention.pulling import Unmixed
from tracer.attention.pushing import through_heads
from tracer.attribution.indices import on_device
from tracer.attribution.local_model import LocalModel
from tracer.attribution.product import product, summed_in


def carried(
    local: LocalModel,
    at: Unmixed,
    values: Float[Tensor, "kv_heads sources d_head"],
    position: Int[np.ndarray, " sources"],
) -> Float[Tensor, "rows sources heads"]:
    """What each head carries from sources into rows.

    Args:
        local: a plain local model; the layer has neither taps nor factors around its pattern.
        at: what rows weigh the layer's output with.
        values: what the layer reads of each source, at its position.
        position: where each stands, ascending.
    """
    maps, where = local.layers[at.layer], position - at.begin
    dense, span, _ = at.gradient.shape
    pattern = maps.transposed_pattern(at.begin, at.begin + span)
    kv_heads, _, group, _ = pattern.shape
    added = through_heads(maps.output, values, group).flatten(0, 1)  # of sources by heads
    inside, heads = int(np.searchsorted(where, span)), kv_heads * group
    weight = pattern[:, on_device(where[:inside], pattern.device)].permute(3, 1, 0, 2)
    weight = weight.flatten(1)  # of queries: sources by heads
    rows, every = dense + len(at.joining), len(where) * heads
    found = added.new_zeros(rows, every, dtype=summed_in(added.dtype))
    for query in range(int(where[0]), span if dense else 0):
        some = slice(0, int(np.searchsorted(where, query, side="right")) * heads)
        worth = product(at.gradient[:, query], added[some])
        found[:dense, some].addcmul_(worth, weight[query, some])
    for query, here in at.joining.by_position():
        some = slice(0, inside * heads)
        worth = product(at.joining.vector[here], added[some])
        found[dense:, some][here] = (worth * weight[query - at.begin, some]).to(found.dtype)
    return found.view(rows, len(where), heads)
