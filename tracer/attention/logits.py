"""`head_logits`: what every head adds to the targets, straight and by way of later heads."""

import pyarrow as pa
import torch

from graphs import AttributionGraph
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.attention.explained import explained
from tracer.attention.plain_streams import gradients, head_gradients, mixed_values, outputs


@one_call()
@torch.no_grad()
def head_logits(model: ReplacementModel, graph: AttributionGraph) -> pa.Table:
    """Direct logit attribution of every head: what it carries into each target.

    Args:
        model: the model the graph was traced from.
        graph: pruned or not; its targets count.

    Returns:
        One row a head and target: layer, head, target (node id); direct (what the head writes at
        the last position, through the final norm alone) and through (that, and what later attention
        and linear skips carry on of what it writes anywhere), in units of the target's logit. What
        heads add by biases of their values is in neither.

    Raises:
        TraceError: the graph is of another model, or a target is a direction.
    """
    about = explained(model, graph)
    names = list(about.logits)
    rows, local = about.rows(names), about.local
    found = []
    for layer, _, read, _ in gradients(local, rows):
        maps = local.layers[layer]
        stream = about.recording.residuals[layer]
        pattern = maps.transposed_pattern(0, local.positions)
        mixed = mixed_values(pattern, maps.write_values(stream)[None])[0]
        worth = head_gradients(maps, read).unflatten(-1, mixed.shape[1:])
        through = torch.einsum("rqhi,qhi->hr", worth, mixed)
        gated = maps.read_heads(mixed.flatten(1)[None], 0).view_as(mixed)
        last = torch.stack([gated[position] for position in rows.position.tolist()])
        vector = rows.vector.to(maps.device)
        written = torch.einsum("rhi,hid,rd->hr", last, outputs(maps, mixed.shape[1]), vector)
        found += [
            (layer, head, name, float(written[head, row]), float(through[head, row]))
            for head in range(len(through))
            for row, name in enumerate(names)
        ]
    found.sort(key=lambda row: (names.index(row[2]), -abs(row[4])))
    kinds = (pa.int32(), pa.int32(), pa.string(), pa.float64(), pa.float64())
    columns = ("layer", "head", "target", "direct", "through")
    parts = zip(*found, strict=True)
    return pa.table(
        {
            name: pa.array(list(part), kind)
            for name, kind, part in zip(columns, kinds, parts, strict=True)
        }
    )
