"""What stays as recorded while a change is measured, from nothing to all that a graph freezes.

A graph takes attention patterns and norm denominators as given; the model makes them anew. What a
measurement gives with them held is what the graph describes, what it gives without is what the
model does, and the difference is the graph's blind spot.
"""

from replacement_models import Recording
from tracer.interventions.freezing import Freezing

NOTHING, ATTENTION, NORMS = "nothing", "attention", "attention and norms"
HELD = (NOTHING, ATTENTION, NORMS)
"""In the order of reports."""


def holding(recording: Recording, held: str) -> Freezing | None:
    """How to hold one of HELD; MLP outputs are always recomputed.

    Returns:
        None for nothing.
    """
    if held == NOTHING:
        return None
    return Freezing(recording, attention=True, norms=held == NORMS, layers=range(0))
