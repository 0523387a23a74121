"""What features and model do on a text: where each feature fires, and what is said next."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.text.documents import Document
from replacement_models.text.packing import FILL, pack
from tracer.features.encoding import encode_rows
from tracer.features.labels.predicates import Text
from tracer.features.settings import Settings

Told = Callable[[int, int], None]
"""Called with rows done and rows in all."""


@dataclass(frozen=True, eq=False)
class Observed:
    """A text, and the tokens of it at which each feature fires."""

    text: Text
    fires: Mapping[int, sparse.csr_array]
    """By layer (features, counted tokens), counted tokens in the order of rows; the activation
    where it is above the feature's threshold."""
    fingerprint: str
    """SHA-256 over the rows of tokens."""

    @cached_property
    def at(self) -> Int[np.ndarray, " counted"]:
        """Place of every counted token among all positions of all rows."""
        return np.flatnonzero(self.text.counts)

    @cached_property
    def row(self) -> Int[np.ndarray, " counted"]:
        """Row of every counted token."""
        return self.at // self.text.tokens.shape[1]

    @property
    def tokens(self) -> int:
        """How many count."""
        return len(self.at)

    def firing(self, layer: int, feature: int, above: float = 0.0) -> Int[np.ndarray, " firing"]:
        """Counted tokens at which a feature is above a level, ascending."""
        found = self.fires[layer]
        span = slice(found.indptr[feature], found.indptr[feature + 1])
        return found.indices[span][found.data[span] > above]


def observe(
    model: ReplacementModel,
    documents: Iterable[Document],
    settings: Settings,
    thresholds: Mapping[int, Float[np.ndarray, " features"]],
    told: Told = lambda done, total: None,
) -> Observed:
    """Run the model over a text.

    Args:
        model: with its dictionary.
        documents: the text.
        settings: how it is packed, and `batch` and `skip_positions`.
        thresholds: by layer, above which each feature counts as firing.
        told: called before every batch.

    Raises:
        TraceError: the text holds no token.
    """
    with TemporaryDirectory() as folder:
        packed = pack(model, documents, settings, Path(folder) / "rows.arrow")
        tokens, fingerprint = np.array(packed.tokens), packed.fingerprint
    tokens = tokens[np.argsort((tokens != FILL).sum(1), kind="stable")]  # little is filled up
    says = np.full(tokens.shape, -1, dtype=np.int32)
    counts = np.zeros(tokens.shape, dtype=bool)
    found = _Firing(thresholds, model.device)
    for start in range(0, len(tokens), settings.batch):
        told(start, len(tokens))
        rows = slice(start, start + settings.batch)
        ids = torch.from_numpy(tokens[rows].astype(np.int64))
        logits: list[Tensor] = []
        counted = encode_rows(model, ids, settings.skip_positions, found.see, logits.append)
        best = logits.pop().argmax(-1).int().cpu().numpy()
        says[rows, : best.shape[1]] = best
        counts[rows] = counted.cpu().numpy()
        found.end_batch(ids.numel())
    says[tokens == FILL] = -1
    text = Text(tokens.astype(np.int32), says, counts)
    return Observed(text, found.matrices(counts), fingerprint)


class _Firing:
    """Collects, layer by layer, the places where features are above their thresholds."""

    def __init__(
        self, thresholds: Mapping[int, Float[np.ndarray, " features"]], device: torch.device
    ) -> None:
        self.thresholds = {
            layer: torch.as_tensor(one, dtype=torch.float32, device=device)
            for layer, one in thresholds.items()
        }
        self.parts: dict[int, list[tuple[np.ndarray, ...]]] = {one: [] for one in thresholds}
        self.before = 0

    def see(self, layer: int, active: Float[Tensor, "tokens features"]) -> None:
        if layer in self.parts:
            token, feature = (active > self.thresholds[layer]).nonzero(as_tuple=True)
            values = active[token, feature].float()
            places = (token + self.before).int()
            self.parts[layer].append(
                tuple(one.cpu().numpy() for one in (places, feature.int(), values))
            )

    def end_batch(self, tokens: int) -> None:
        self.before += tokens

    def matrices(self, counts: np.ndarray) -> dict[int, sparse.csr_array]:
        """Features by counted tokens."""
        number = np.cumsum(counts.ravel()) - 1
        found = {}
        for layer, parts in self.parts.items():
            token, feature, value = (np.concatenate(one) for one in zip(*parts, strict=True))
            shape = (len(self.thresholds[layer]), int(counts.sum()))
            matrix = sparse.csr_array((value, (feature, number[token])), shape=shape)
            matrix.sort_indices()
            found[layer] = matrix
        return found
