"""What one pass over a corpus has seen so far, and its commits to disk.

All of it is of fixed size but the sample of tokens, whose size the settings bound. A commit is one
rename; what stands on disk is always the state after a whole number of batches, so a run that was
killed goes on from there and ends with the same numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from replacement_models import ReplacementModel
from tracer.features.encoding import encode_rows
from tracer.features.settings import Settings
from tracer.features.statistics import Moments, may_be_negative, quantiles
from tracer.features.strongest import Kept, by_lot, by_strength, peaks_of
from tracer.features.together import drawn, most, strongest

KEPT = ("keys", "slots", "positions", "activations")
"""Fields of `Kept`."""


@dataclass(frozen=True, eq=False)
class LayerState:
    """What was seen of one layer's features."""

    moments: Moments
    top: Kept
    """Windows where each feature is strongest."""
    drawn: Kept
    """Windows where it fires, at random."""
    bottom: Kept | None
    """Windows where it is most negative; None where it never is."""
    sampled: list[Int[Tensor, "sampled kept"]] = field(default_factory=list)
    """Strongest features of the sampled tokens, a batch each."""

    @classmethod
    def empty(cls, model: ReplacementModel, layer: int, settings: Settings) -> "LayerState":
        """Nothing seen yet."""
        features, device = len(model.transcoder.layers[layer].W_enc), model.device
        signed = may_be_negative(model, layer)

        def kept(places: int) -> Kept:
            return Kept.empty(features, places, settings.window, device)

        return cls(
            moments=Moments.empty(features, signed, device),
            top=kept(settings.examples),
            drawn=kept(settings.reservoir),
            bottom=kept(settings.examples) if signed else None,
        )

    def extremes(self) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
        """Smallest and largest activation of each feature over the counted tokens, zero among them.

        Exact in float32.
        """
        lowest = None if self.bottom is None else -_first_peak(self.bottom)
        highest = _first_peak(self.top)
        return np.zeros_like(highest) if lowest is None else lowest, highest

    def quantiles(self) -> Float[np.ndarray, "features shares"]:
        """At QUANTILES, within what was seen; NaN for a feature that never fired."""
        lowest, highest = self.extremes()
        found = quantiles(self.moments.histogram.cpu().numpy())
        return found.clip(lowest[:, None], highest[:, None])

    def tensors(self) -> dict[str, Tensor]:
        """By name, what a commit holds."""
        found = {"total": self.moments.total, "histogram": self.moments.histogram}
        for name in ("top", "drawn", "bottom"):
            one: Kept | None = getattr(self, name)
            if one is not None:
                found |= {f"{name}.{part}": getattr(one, part) for part in KEPT}
        return found


@dataclass(eq=False)
class Running:
    """The state after the first so many rows."""

    layers: dict[int, LayerState]
    rows: int = 0
    counted: int = 0
    """Tokens that count."""

    @classmethod
    def empty(cls, model: ReplacementModel, settings: Settings) -> "Running":
        """Nothing seen yet."""
        present = model.transcoder.present
        return cls({layer: LayerState.empty(model, layer, settings) for layer in present})

    def add(
        self,
        model: ReplacementModel,
        rows: Int[Tensor, "rows context"],
        settings: Settings,
        share: float,
    ) -> None:
        """See one batch of rows.

        Args:
            model: the model.
            rows: ids, FILL where there is no token.
            settings: of the build.
            share: of all tokens, those sampled for what fires together.
        """
        first, tokens = self.rows * settings.context, rows.numel()
        windows = torch.arange(first, first + tokens, settings.window) // settings.window
        windows = windows.to(model.device)
        sample = drawn(first, tokens, share, model.device)
        kept = most(model.transcoder.present)

        def see(layer: int, active: Float[Tensor, "tokens features"]) -> None:
            state = self.layers[layer]
            state.moments.add(active, settings.window)
            _keep(state, layer, active.unflatten(0, (-1, settings.window)), windows)
            state.sampled.append(strongest(active[sample], kept))

        counts = encode_rows(model, rows, settings.skip_positions, see)
        self.counted += int(counts.sum())
        self.rows += len(rows)

    def save(self, path: Path) -> None:
        """Commit: what stood at `path` is replaced in one rename."""
        tensors = {
            f"{layer}.{name}": tensor
            for layer, state in self.layers.items()
            for name, tensor in {**state.tensors(), "sampled": _joined(state.sampled)}.items()
        }
        partial = path.with_name(f"{path.name}.partial")
        about = {"rows": json.dumps(self.rows), "counted": json.dumps(self.counted)}
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, partial, about)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a commit."""
        with safe_open(path, "pt") as file:
            about = file.metadata()
            self.rows, self.counted = int(about["rows"]), int(about["counted"])
            for layer, state in self.layers.items():
                for name, tensor in state.tensors().items():
                    tensor.copy_(file.get_tensor(f"{layer}.{name}"))
                found = file.get_tensor(f"{layer}.sampled").to(state.moments.total.device)
                state.sampled[:] = [found]


def _keep(
    state: LayerState,
    layer: int,
    active: Float[Tensor, "new window features"],
    windows: Int[Tensor, " new"],
) -> None:
    """Rank one batch's windows among those kept of each feature."""
    peak = active.amax(1)
    state.top.add(by_strength(peak, windows), active)
    fires = peak
    if state.bottom is not None:
        lowest = active.amin(1)
        state.bottom.add(by_strength(-lowest, windows), active, lowest=True)
        fires = torch.where(peak > 0, peak, lowest)
    state.drawn.add(by_lot(fires, windows, layer), active)


def _first_peak(kept: Kept) -> Float[np.ndarray, " features"]:
    return peaks_of(kept.keys[:, 0]).cpu().numpy()


def _joined(parts: Sequence[Tensor]) -> Int[Tensor, "sampled kept"]:
    return torch.cat(list(parts)) if parts else torch.zeros(0, 0, dtype=torch.int32)
