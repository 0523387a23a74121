"""Cross-layer transcoders (CLT): a layer's features write to its own and all later MLP outputs."""

from collections.abc import Sequence
from typing import final

from replacement_models.transcoder import Transcoder


@final
class CrossLayerTranscoder(Transcoder):
    """Features read once and write many times (Lindsey et al. 2024, Ameisen et al. 2025)."""

    kind = "cross_layer"

    def targets(self, layer: int) -> Sequence[int]:
        """The layer and every later one that has a dictionary."""
        return [at for at in self.present if at >= layer]
