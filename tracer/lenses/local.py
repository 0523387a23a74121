"""The prompt-local lens: every stream read through the frozen linear maps above it, exactly.

In the local replacement model of a prompt (Ameisen et al. 2025, "Circuit Tracing", section "Local
replacement model") everything above a site is affine in the stream there. So for every site and
position the logits before the soft cap are a sum of two parts, each with its own arithmetic:

    logits[p] = reading[site, p] + constant[site, p]

The *reading* is the stream at that site, of all positions up to p, taken through frozen attention,
linear skips, the final norm at its recorded denominator and the unembedding. `own` is the part of
it that was at p already; the rest, attention above brings from earlier positions.

The *constant* is what is written above the site, taken the same way up: by features into the MLP
outputs there, whichever layer the features fired in; by errors; and by biases, which are those of
attention, norms and dictionaries, the final norm's and the unembedding's, and at positions that are
skipped the whole MLP output (less its linear skip).

Vectors go up the layers together, one pass for all sites: D numbers a site, never V rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replacement_models import Recording, ReplacementModel
from replacement_models.one_line import one_line
from replacement_models.process import one_call
from replacement_models.sites import Site, Stage
from tracer.attribution.local_model import LinearLayer, LocalModel, linearise
from tracer.nothing_aside import nothing_aside

PARTS = ("own", "others", "features", "errors", "biases")
"""Of the final stream: what was at a site, at the position itself and at others, and what was
written above it."""


@dataclass(frozen=True, eq=False)
class LocalLens:
    """All sites of one prompt, as they arrive before the final norm."""

    model: ReplacementModel
    recording: Recording
    parts: Mapping[Site, Float[Tensor, "parts positions d_model"]]
    """By site of the stream, from below; parts in the order of `PARTS`."""

    __repr__ = one_line

    def reading(self, site: Site, own: bool = False) -> Float[Tensor, "positions vocabulary"]:
        """What the stream at a site says, as logits before the soft cap.

        Args:
            site: one of the stream's.
            own: only what was at each position itself.

        Returns:
            (P, V), without any bias: the `constant` holds them.
        """
        return self._unembed(self.parts[site][: 1 if own else 2].sum(0))

    def constant(self, site: Site) -> Float[Tensor, "positions vocabulary"]:
        """What is written above a site, as logits (P, V), all biases included."""
        norm, host = self.model.host.final_norm, self.model.host
        logits = self._unembed(self.parts[site][2:].sum(0))
        for bias in (
            None if norm.bias is None else host.unembedding @ norm.bias,
            host.unembedding_bias,
        ):
            logits = logits if bias is None else logits + bias
        return logits

    def part(self, site: Site, name: str) -> Float[Tensor, "positions vocabulary"]:
        """One of `PARTS` as logits (P, V), less the biases of final norm and unembedding."""
        return self._unembed(self.parts[site][PARTS.index(name)])

    def _unembed(self, stream: Tensor) -> Tensor:
        norm, stream = self.model.host.final_norm, stream.to(self.model.device)
        passed = norm.centre(stream) / self.recording.final_scale * norm.weight
        return passed @ self.model.host.unembedding.T


@one_call()
@torch.no_grad()
def local_lens(
    model: ReplacementModel, prompt: str | Sequence[int], *, skip_positions: int = 1
) -> LocalLens:
    """Read every stream of a prompt through the frozen maps above it.

    Args:
        model: the model; what its dictionary holds decides what the constant is made of and
            which linear skips are passed.
        prompt: text, or token ids taken as they stand.
        skip_positions: features and errors at the first so many positions count as biases.

    Returns:
        A lens whose reading plus constant is the recorded logits before the cap, at every site and
        position (tests/test_tracer_lenses_local.py).

    Raises:
        ModelError: the prompt does not fit the model.
        TraceError: the model's shared blocks stand aside of the stream.
    """
    recording = model.record(prompt)
    return of_recording(model, recording, skip_positions)


def of_recording(
    model: ReplacementModel, recording: Recording, skip_positions: int = 1
) -> LocalLens:
    """The lens of a prompt that is recorded already; as `local_lens`."""
    nothing_aside(model, "a local lens")
    local = linearise(model, recording, skip_positions, plain=True)
    going: dict[Site, Tensor] = {}
    for layer, maps in enumerate(local.layers):
        entering, between = Site(layer, Stage.RESID_PRE), Site(layer, Stage.RESID_MID)
        going[entering] = _begun(recording.stream(entering))
        attention, mlp = _written(local, layer)
        held = torch.stack([one.to(maps.device) for one in going.values()])
        mixed = held + _attended(maps, held)
        mixed[:, -1] += attention
        names = [*going]
        if not maps.parallel:
            mixed = torch.cat([mixed, _begun(recording.stream(between))[None]])
            names.append(between)
        above = _past_skip(maps, mixed, held if maps.parallel else mixed).clone()
        above[:, 2:] += mlp
        going = dict(zip(names, above, strict=True))
    last = Site(len(local.layers), Stage.RESID_PRE)
    going[last] = _begun(recording.stream(last))
    return LocalLens(model, recording, going)


def _begun(stream: Float[Tensor, "positions d_model"]) -> Float[Tensor, "parts positions d_model"]:
    """A stream at its own site: nothing is written yet."""
    return torch.stack([stream, *[torch.zeros_like(stream)] * (len(PARTS) - 1)])


def _written(
    local: LocalModel, layer: int
) -> tuple[Float[Tensor, "positions d_model"], Float[Tensor, "3 positions d_model"]]:
    """What a layer writes whatever the stream is: its attention's biases; its MLP's last parts."""
    maps, writers, found = local.layers[layer], local.writers[layer], []
    attention = maps.carried[:, -1]
    fired = local.features.activation
    for position in range(local.positions):
        vectors, count = writers.at(position), writers.features(position)
        own = slice(writers.first[position], writers.first[position] + count)
        mine = fired[own].to(vectors.device)
        found.append(torch.stack([mine @ vectors[:count], *vectors[count:]]))
    mlp = torch.stack(found, dim=1)
    # The engine's constant holds attention's, taken past the linear skip.
    mlp[2] -= attention if maps.parallel else _past_skip(maps, attention, attention)
    return attention, mlp


def _attended(
    maps: LinearLayer, held: Float[Tensor, "sites parts positions d_model"]
) -> Float[Tensor, "sites parts positions d_model"]:
    """What attention makes of every part; what `own` brings elsewhere joins `others`."""
    pattern = maps.transposed_pattern(0, held.shape[2])
    values = maps.write_values(held).unflatten(-1, (len(pattern), -1))
    mixed = maps.write_heads(torch.einsum("vkgq,spkvi->spqvgi", pattern, values).flatten(3))
    own = (
        values[:, 0] if maps.around is None else _own_values(maps, held[:, 0]).view_as(values[:, 0])
    )
    stays = maps.write_heads(torch.einsum("vqgq,sqvi->sqvgi", pattern, own).flatten(2))
    mixed[:, 1] += mixed[:, 0] - stays
    mixed[:, 0] = stays
    return mixed


def _own_values(
    maps: LinearLayer, own: Float[Tensor, "sites positions d_model"]
) -> Float[Tensor, "sites positions kv_heads_d_head"]:
    """Values that each position reads of itself alone, before taps bring those before it."""
    return torch.cat([maps.write_values(own[:, at, None], at) for at in range(own.shape[1])], dim=1)


def _past_skip(maps: LinearLayer, vectors: Tensor, read: Tensor) -> Tensor:
    """(..., P, D): `vectors` with what the linear skip makes of `read`."""
    if maps.skip is None:
        return vectors
    return vectors + maps.skip_scale * (read @ maps.skip)
