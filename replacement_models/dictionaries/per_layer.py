"""Per-layer transcoders (PLT): each layer's features write to that layer's MLP output only."""

from collections.abc import Sequence
from typing import final

from replacement_models.transcoder import Transcoder


@final
class PerLayerTranscoder(Transcoder):
    """One dictionary a layer (Dunefsky et al. 2024, "Transcoders Find Interpretable Circuits")."""

    kind = "per_layer"

    def targets(self, layer: int) -> Sequence[int]:
        """The layer itself."""
        return range(layer, layer + 1)
