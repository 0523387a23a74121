"""The windows in which each feature is strongest, and a random draw of those in which it fires.

A window is a piece of a row. Of every feature a fixed number of windows is kept, on the device, as
keys: whole numbers that hold what the windows are ranked by in their upper half and the window's
number in their lower one. No two keys are equal, so nothing depends on how ties are broken or on
how the corpus is cut into batches. Beside a key stand the activations of its window's tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NONE, UNWANTED = -1, -2
"""The key of a place that holds no window yet, below those of windows; and that of a window which
may not take such a place."""
LOW = (1 << 32) - 1
"""The lower half of a key. A window's number is turned round there: earlier ones rank higher."""
STORED = torch.bfloat16
"""How a window's activations are held: three digits, for colours. Peaks are in the keys."""


@dataclass(frozen=True, eq=False)
class Kept:
    """So many windows of each feature of one layer, in descending order of their keys.

    What stands beside the keys stays where it is when keys move; `slots` says where that is.
    """

    keys: Int[Tensor, "features places"]
    slots: Int[Tensor, "features places"]
    """Of each key, its place in the following two."""
    positions: Int[Tensor, "features slots"]
    """Where in its window each feature is strongest."""
    activations: Float[Tensor, "features slots window"]

    @classmethod
    def empty(cls, features: int, places: int, window: int, device: torch.device) -> "Kept":
        """Nothing seen yet."""
        keys = torch.full((features, places), NONE, dtype=torch.int64, device=device)
        slots = torch.arange(places, device=device).repeat(features, 1)
        positions = torch.zeros(features, places, dtype=torch.int32, device=device)
        held = torch.zeros(features, places, window, dtype=STORED, device=device)
        return cls(keys, slots, positions, held)

    def add(
        self,
        keys: Int[Tensor, "features new"],
        active: Float[Tensor, "new window features"],
        lowest: bool = False,
    ) -> None:
        """Let windows of one batch in where they rank above what is kept.

        Args:
            keys: of the batch's windows.
            active: their activations.
            lowest: features are strongest where they are most negative.
        """
        places = self.keys.shape[1]
        changed = (keys.amax(1) > self.keys[:, -1]).nonzero()[:, 0]
        if not len(changed):
            return
        best = torch.cat([self.keys[changed], keys[changed]], 1).topk(places, dim=1)
        self.keys[changed] = best.values
        enters = best.indices >= places
        row, place = enters.nonzero(as_tuple=True)
        stays = self.slots[changed].gather(1, best.indices.clamp(max=places - 1))
        # As many slots of a feature are free as windows enter, and both are listed by feature.
        free = torch.ones_like(enters).scatter_reduce(1, stays, enters, "amin")
        slot = free.nonzero(as_tuple=True)[1]
        self.slots[changed] = stays
        feature = changed[row]
        self.slots[feature, place] = slot
        new = active[best.indices[row, place] - places, :, feature]
        self.positions[feature, slot] = (-new if lowest else new).argmax(1).int()
        self.activations[feature, slot] = new.to(STORED)

    def ordered(self) -> "Kept":
        """The same on the CPU, with everything in the order of the keys."""
        keys, slots, positions, held = (
            one.cpu() for one in (self.keys, self.slots, self.positions, self.activations)
        )
        rows = torch.arange(len(keys))[:, None]
        places = torch.arange(keys.shape[1]).expand_as(slots)
        return Kept(keys, places, positions[rows, slots], held[rows, slots])


def by_strength(
    peak: Float[Tensor, "new features"], windows: Int[Tensor, " new"]
) -> Int[Tensor, "features new"]:
    """Keys that rank windows by what a feature reaches in them, where that is above zero."""
    bits = peak.float().contiguous().view(torch.int32).long()  # ascending where positive
    return _keys(bits, windows, peak > 0)


def by_lot(
    fires: Float[Tensor, "new features"], windows: Int[Tensor, " new"], layer: int
) -> Int[Tensor, "features new"]:
    """Keys that rank windows at random, the same way every time, where a feature fires at all."""
    features = torch.arange(fires.shape[1], device=windows.device)
    seed = (windows[:, None] * 0x9E3779B1 + features) * 0x85EBCA77 + layer * 0xC2B2AE3D
    return _keys(mixed(seed) >> 1, windows, fires != 0)


def mixed(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """32 bits that look random, from whole numbers (MurmurHash3's finaliser)."""
    x = x & LOW
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & LOW
    return x ^ (x >> 16)


def _keys(rank: Tensor, windows: Tensor, wanted: Tensor) -> Tensor:
    """Rank (31 bits) above, the window turned round below; UNWANTED where it is not wanted."""
    keys = (rank << 32) | (LOW - windows)[:, None]
    return keys.where(wanted, UNWANTED).T


def windows_of(keys: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The window's number in every key; NONE where there is none."""
    return (LOW - (keys & LOW)).where(keys != NONE, NONE)


def peaks_of(keys: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What `by_strength` ranked each key by, in float32; 0 where there is none."""
    return (keys.clamp(min=0) >> 32).int().view(torch.float32)
