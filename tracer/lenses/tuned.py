"""The tuned lens: an affine map a layer, trained to say what the model will answer.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens": the
stream h entering layer l is read as `unembed(norm(A_l h + b_l))`, and A_l and b_l minimise
KL(model's answer ‖ reading) over text, from the logit lens on: A_l = 1, b_l = 0. Layers are trained
apart, from the same passes of the model. The paper steps by SGD with Nesterov momentum at a rate of
1; here Adam steps, its rate falling linearly to nothing as there, since its steps have one size
whatever that of a model's streams and logits. b_l counts in units of its layer's stream.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div

from replacement_models import ReplacementModel
from tracer.lenses.corpus import Packed
from tracer.lenses.readings import unembedded
from tracer.lenses.streams import batches, streams

RATE, DECAY, ROWS = 1e-3, 0.1, 8
"""Of Adam; pull towards the logit lens; rows a step."""
Progress = Callable[[int, int], None]
Maps = tuple[Float[Tensor, "layers d_model d_model"], Float[Tensor, "layers d_model"]]


def tuned_maps(
    model: ReplacementModel, text: Packed, steps: int, seed: int, progress: Progress | None
) -> Maps:
    """Train on the rows of a corpus.

    Args:
        model: the model; it stays as it is.
        text: rows to train on, as often as it takes.
        steps: of the optimiser, `ROWS` rows each.
        seed: of the order of rows.
        progress: called after every step with how many are done, and of how many.

    Returns:
        Maps and offsets in float32.
    """
    layers, width = len(model.host.blocks), model.host.d_model
    moved = [torch.zeros(width, width, device=model.device) for _ in range(layers)]
    offset = [torch.zeros(width, device=model.device) for _ in range(layers)]
    adam = torch.optim.AdamW([*moved, *offset], lr=RATE, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda done: 1 - done / steps)
    order, sizes = _forever(text.fitted, seed), [1.0] * layers
    for done in range(1, steps + 1):
        with torch.no_grad():
            seen = streams(model, next(order))
        answer = seen.logits[:, text.skip :].flatten(0, 1).float().log_softmax(-1)
        for layer, entering in enumerate(seen.entering[:-1]):
            stream = entering[:, text.skip :].flatten(0, 1).to(model.device)
            if done == 1:
                sizes[layer] = float(stream.float().square().mean().sqrt())
            weights = moved[layer], offset[layer]
            for weight, slope in zip(
                weights, _slopes(model, stream, answer, weights, sizes[layer]), strict=True
            ):
                weight.grad = slope
        adam.step()
        rate.step()
        if progress is not None:
            progress(done, steps)
    eye = torch.eye(width, device=model.device)
    scaled = [size * one for size, one in zip(sizes, offset, strict=True)]
    return torch.stack(moved) + eye, torch.stack(scaled)


def _forever(
    rows: Int[Tensor, "rows positions"], seed: int
) -> Iterator[Int[Tensor, "batch positions"]]:
    """Batches of all rows, again and again, each time in another order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from batches(rows, ROWS, generator)


@torch.enable_grad()
def _slopes(
    model: ReplacementModel,
    stream: Float[Tensor, "tokens d_model"],
    answer: Float[Tensor, "tokens vocabulary"],
    weights: tuple[Tensor, Tensor],
    size: float,
) -> tuple[Tensor, ...]:
    """Gradients of one layer's mean divergence.

    Args:
        model: reads.
        stream: entering the layer.
        answer: log-probabilities of the model.
        weights: the layer's map less the identity, and its offset in units of `size`.
        size: of the stream's entries.
    """
    moved, offset = (weight.detach().requires_grad_() for weight in weights)
    change = stream.float() @ moved.T + size * offset
    said = unembedded(model, stream + change.to(stream.dtype)).float().log_softmax(-1)
    loss = kl_div(said, answer, log_target=True, reduction="batchmean")
    return torch.autograd.grad(loss, (moved, offset))
