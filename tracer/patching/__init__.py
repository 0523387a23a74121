"""Patching and ablation of features, heads, layers and positions, on the same footing."""

from tracer.patching.metrics import Metric, divergence, logit_difference, probability
from tracer.patching.patch_sites import Kind, PatchSite, sites_of
from tracer.patching.paths import path_patch
from tracer.patching.run import ablate, patch
from tracer.patching.table import heat_map

__all__ = [
    "Kind",
    "Metric",
    "PatchSite",
    "ablate",
    "divergence",
    "heat_map",
    "logit_difference",
    "patch",
    "path_patch",
    "probability",
    "sites_of",
]
