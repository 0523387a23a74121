"""The Jacobian lens: a layer's stream taken up by the mean Jacobian of everything above it.

The definition used here: J_l is the mean, over rows of text and one position p of each drawn at
random, of d(stream entering the final norm at p) / d(stream entering layer l at p), through the
whole model: MLPs, attention patterns and norms answer. It is read as
`unembed(norm(J_l (h - m_l) + m_L))`, m_l the mean stream entering layer l: to first order around
the mean, what the stream at a position does to the answer there. What it does at later positions is
left out: with it (the mean over pairs q <= p) the lens is further from the answers at every layer
of the embedded model, and without the means further still (`README.md` has the figures).

Exact by reverse mode at the positions drawn: one backward pass for each of the D entries of the
final stream gives all layers and rows of a batch.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement_models import ReplacementModel
from replacement_models.hooks import forward_hooks
from tracer.lenses.corpus import Packed
from tracer.lenses.streams import batches, streams

ROWS = 16
"""Rows of one batch."""
Progress = Callable[[int, int], None]
Maps = tuple[Float[Tensor, "layers d_model d_model"], Float[Tensor, "layers d_model"]]


def jacobian_maps(
    model: ReplacementModel, text: Packed, steps: int, seed: int, progress: Progress | None
) -> Maps:
    """Average Jacobians and streams over some rows of a corpus.

    Args:
        model: the model; it stays as it is.
        text: rows to draw from.
        steps: batches of `ROWS` rows; no row is taken twice.
        seed: of rows and positions.
        progress: called after every batch.

    Returns:
        Maps and offsets in float32.
    """
    layers, width = len(model.host.blocks), model.host.d_model
    total = torch.zeros(layers, width, width, device=model.device)
    means = torch.zeros(layers + 1, width, device=model.device)
    generator = torch.Generator().manual_seed(seed)
    drawn = batches(text.fitted, ROWS, generator)[:steps]
    rows = sum(map(len, drawn))
    for done, batch in enumerate(drawn, start=1):
        at = torch.randint(text.skip, batch.shape[1], (len(batch),), generator=generator)
        jacobians, streamed = summed_jacobians(model, batch, at.to(batch.device), text.skip)
        total += jacobians / rows
        means += streamed / rows
        if progress is not None:
            progress(done, len(drawn))
    return total, means[-1] - torch.einsum("lij,lj->li", total, means[:-1])


@torch.enable_grad()
def summed_jacobians(
    model: ReplacementModel,
    rows: Int[Tensor, "rows positions"],
    at: Int[Tensor, " rows"],
    skip: int,
) -> tuple[Float[Tensor, "layers d_model d_model"], Float[Tensor, "layers_and_one d_model"]]:
    """Each row's Jacobian at one position and its mean streams, added up over rows.

    Args:
        model: the model.
        rows: token ids.
        at: a position in each.
        skip: leave the first so many positions out of the means.

    Returns:
        Jacobians [layer, entry of the final stream, entry of the layer's]; streams of L + 1 sites.
    """

    def begin(inputs: object, output: Tensor) -> Tensor:  # weights may be frozen
        return output.detach().requires_grad_()

    with forward_hooks([(model.host.embedding, begin)]):
        *below, final = streams(model, rows).entering
        final = final.to(rows.device)
    place, found = (torch.arange(len(rows), device=rows.device), at), []
    for entry in range(final.shape[-1]):
        slopes: Sequence[Tensor] = torch.autograd.grad(
            final[(*place, entry)].sum(), below, retain_graph=True
        )
        slopes = [slope.to(rows.device) for slope in slopes]
        found.append(torch.stack([slope[place].float().sum(0) for slope in slopes]))
    means = [one[:, skip:].detach().float().mean(1).sum(0) for one in (*below, final)]
    means = [one.to(rows.device) for one in means]
    return torch.stack(found, dim=1), torch.stack(means)
