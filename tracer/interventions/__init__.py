"""Interventions as data, and the forward pass that carries them out."""

from tracer.interventions.values import Intervention, Steering, Supernode

__all__ = ["Intervention", "Steering", "Supernode"]
