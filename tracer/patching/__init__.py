"""Patching and ablation of features, heads, layers and positions, on the same footing."""

from tracer.patching.metrics import Metric, divergence, logit_difference, probability
from tracer.patching.paths import path_patch
from tracer.patching.run import ablate, patch
from tracer.patching.sites import Kind, Site, sites_of
from tracer.patching.table import heat_map

__all__ = [
    "Kind",
    "Metric",
    "Site",
    "ablate",
    "divergence",
    "heat_map",
    "logit_difference",
    "patch",
    "path_patch",
    "probability",
    "sites_of",
]
