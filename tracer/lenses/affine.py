"""A lens as a file: an affine map a layer, which the final norm and the unembedding follow.

One safetensors file: `maps` (L, D, D) and `offsets` (L, D), float32, a layer each for the stream
entering it, and a header whose entry `lens` is JSON: format, version, kind, model and how the lens
was made. Applied as `maps[l] @ x + offsets[l]`. The stream entering the final norm has no map: it
is read as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.sites import Site, Stage
from tracer.errors import TraceError
from tracer.lenses.stored import read_tensors, write_tensors

KINDS = ("tuned", "jacobian")
"""What can be fitted and saved."""


@dataclass(frozen=True, eq=False)
class AffineLens:
    """A fitted lens for a model of L layers and width D."""

    kind: str
    """"tuned" or "jacobian"."""
    maps: Float[Tensor, "layers d_model d_model"]
    offsets: Float[Tensor, "layers d_model"]
    about: Mapping[str, Any]
    """How it was made: the model's name, settings, and figures on text held out."""

    __repr__ = one_line

    def read(
        self, layer: int, stream: Float[Tensor, "*rows d_model"]
    ) -> Float[Tensor, "*rows d_model"]:
        """The stream entering a layer as it would enter the final norm; that at L as it is."""
        if layer == len(self.maps):
            return stream
        return stream @ self.maps[layer].to(stream).T + self.offsets[layer].to(stream)

    @property
    def content_hash(self) -> str:
        """SHA-256 of its kind, maps and offsets, 64 hexadecimal digits."""
        digest = sha256(self.kind.encode())
        for part in (self.maps, self.offsets):
            digest.update(part.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the lens to a file that ends in .safetensors; the same lens, the same bytes.

        Raises:
            TraceError: the path does not end so.
            GraphError: nothing can be written there.
        """
        tensors = {"maps": self.maps, "offsets": self.offsets}
        write_tensors(Path(path), tensors, "lens", {"kind": self.kind, **self.about})

    @classmethod
    def load(cls, path: str | Path) -> "AffineLens":
        """Read a lens.

        Raises:
            TraceError: no such file, or it holds no lens.
        """
        tensors, about = read_tensors(Path(path), "lens", ("maps", "offsets"))
        maps, offsets, kind = tensors["maps"], tensors["offsets"], about.pop("kind", None)
        if kind not in KINDS:
            raise TraceError(f"{path}: kind is {kind!r}, expected one of {', '.join(KINDS)}")
        square = maps.ndim == 3 and maps.shape[1] == maps.shape[2]
        if not square or offsets.shape != maps.shape[:2]:
            raise TraceError(
                f"{path}: maps have shape {tuple(maps.shape)} and offsets {tuple(offsets.shape)}, "
                "expected (layers, d_model, d_model) and (layers, d_model)"
            )
        return cls(kind, maps, offsets, about)

    def check_fit(self, model: ReplacementModel) -> None:
        """Refuse a model of other sizes.

        Raises:
            TraceError: layers or width differ.
        """
        fits = (len(model.host.blocks), model.host.d_model)
        if self.offsets.shape != fits:
            raise TraceError(
                f"the {self.kind} lens is for {self.offsets.shape[0]} layers of width "
                f"{self.offsets.shape[1]}, but {model.name or 'the model'} has {fits[0]} of width "
                f"{fits[1]}; fit one on it"
            )

    def check_sites(self, sites: "list[Site]") -> None:
        """Refuse sites that it has no map for.

        Raises:
            TraceError: a site lies between attention and MLP.
        """
        for site in sites:
            if site.stage is not Stage.RESID_PRE:
                raise TraceError(
                    f"the {self.kind} lens reads the stream entering a layer, not at {site}; leave "
                    "that site out, or take the logit or the local lens"
                )


def identity(layers: int, width: int) -> tuple[Tensor, Tensor]:
    """Maps (L, D, D) and offsets (L, D) that leave the stream as it is: the logit lens."""
    return torch.eye(width).repeat(layers, 1, 1), torch.zeros(layers, width)
