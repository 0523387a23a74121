"""Sparse autoencoders (SAE): dictionaries whose target is their input."""

from collections.abc import Sequence
from typing import final

from replacement_models.transcoder import Transcoder


@final
class SparseAutoencoder(Transcoder):
    """Reconstructs what it reads (Bricken et al. 2023, "Towards Monosemanticity").

    It reads an MLP's output, or what its layers' `stage` says, and stands in for no MLP: it can be
    trained, saved and evaluated here, but a replacement model refuses it.
    """

    kind = "sae"

    def targets(self, layer: int) -> Sequence[int]:
        """The layer itself."""
        return range(layer, layer + 1)
