"""Which features of a graph write alike."""

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import normalize

from graphs import AttributionGraph, NodeKind
from replacement_models import ReplacementModel
from replacement_models.process import one_call
from tracer.errors import TraceError
from tracer.features.promoted import written_by


@one_call()
@torch.no_grad()
def decoder_cosines(
    model: ReplacementModel, graph: AttributionGraph
) -> Float[np.ndarray, "features features"]:
    """Cosines between what the features of a graph write, summed over the layers they write to.

    What `AttributionGraph.group_features` takes.

    Args:
        model: the model that the graph is of.
        graph: whose features to compare.

    Returns:
        (features, features) from -1 to 1, features in node order; 0 for one that writes nothing.

    Raises:
        TraceError: the graph has a feature that the model has not.
    """
    rows = [row for row in graph.nodes.to_pylist() if row["kind"] == NodeKind.FEATURE]
    layers = np.array([row["layer"] for row in rows], int)
    found = torch.zeros(len(rows), model.host.d_model, dtype=model.dtype, device=model.device)
    for layer in sorted(set(layers.tolist())):
        at = np.flatnonzero(layers == layer)
        features = torch.tensor([rows[row]["feature"] for row in at], device=model.device)
        width = len(model.transcoder.layers[layer].b_enc) if layer < len(model.host.blocks) else 0
        if int(features.max()) >= width:
            raise TraceError(f"the graph has feature {int(features.max())} in layer {layer}, the "
                             f"model {width} features there: name the model it was traced "
                             "with")  # fmt: skip
        wrote = written_by(model, layer, features)
        found[torch.from_numpy(at).to(model.device)] = normalize(wrote, dim=1)
    return (found @ found.T).double().cpu().numpy()
