"""The end-to-end stage: the model with every MLP replaced is to say what it says itself."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement_models.replaced import Where, counted, logits_of, replaced
from replacement_models.replacement import ReplacementModel
from replacement_models.sites import ReadPoint, WritePoint
from replacement_models.training.firing import Active, active
from replacement_models.training.product import product_of
from replacement_models.training.shards import take_gradients, whole
from replacement_models.training.trainee import Trainee

SHARPNESS = 4.0
"""What logits are multiplied by to sharpen a distribution."""
PRECISE = product_of("float32")


@dataclass(eq=False)
class Standing:
    """A trainee that stands in for MLPs: over pairs where few features fire, as in a step.

    Features are computed at positions that are not kept, and at no others. BatchTopK's fire above
    the threshold that a finished dictionary has.
    """

    trainee: Trainee
    sparse: list[bool]
    """For each layer, whether it computes over pairs alone."""
    counted: Bool[Tensor, "rows positions"] = field(init=False)
    pending: dict[int, Tensor] = field(init=False)
    """What has been written to each layer, by its number, in normalised units."""

    @property
    def present(self) -> tuple[int, ...]:
        """Layers in training."""
        return self.trainee.wiring.layers

    def read_at(self, layer: int) -> ReadPoint:
        """The same for all."""
        return ReadPoint(self.trainee.config.dictionary.read)

    def write_at(self, layer: int) -> WritePoint:
        """The same for all."""
        return WritePoint(self.trainee.config.dictionary.write)

    def begin(self, counted: Bool[Tensor, "rows positions"]) -> None:
        """Nothing has been written."""
        self.counted, self.pending = counted.to(self.trainee.b_dec[0].device), {}

    def read(self, layer: int, inputs: Float[Tensor, "rows positions d_model"]) -> Tensor:
        """Let one layer's features write.

        Returns:
            Their activations, shaped as its `Active` has them.
        """
        trainee, at = self.trainee, self.present.index(layer)
        found = self._active(at, self._normalised(at, inputs))
        written = trainee.writes_of(at, found, found.values).unbind(1)
        for target, one in zip(trainee.wiring.slots(at), written, strict=True):
            self.pending[target] = self.pending[target] + one if target in self.pending else one
        return found.values

    def output(
        self, layer: int, inputs: Float[Tensor, "rows positions d_model"]
    ) -> Float[Tensor, "rows positions d_model"]:
        """What was written to one layer; zeros where positions are kept."""
        trainee, at = self.trainee, self.present.index(layer)
        total = self.pending.pop(at) + trainee.base(at, self._normalised(at, inputs))
        scale = trainee.writes[at]
        made = total * scale.deviation + scale.mean
        return inputs.new_zeros(inputs.shape).index_put(
            self.counted.to(inputs.device).nonzero(as_tuple=True), made.to(inputs)
        )

    def _active(self, at: int, x: Float[Tensor, "tokens d_model"]) -> Active:
        trainee, firing = self.trainee, self.trainee.firing[at]
        if firing.name != "batch_topk":
            return trainee.active(at, x, PRECISE, self.sparse[at])
        weight = trainee.W_enc[at]
        limit = trainee.limit[at].expand(len(weight))
        return active(firing, x, weight, trainee.b_enc[at], limit, PRECISE, self.sparse[at])

    def _normalised(self, at: int, inputs: Tensor) -> Float[Tensor, "tokens d_model"]:
        like = self.trainee.b_dec[0]
        return self.trainee.reads[at].normalised(inputs.to(like)[self.counted])


def divergence(
    model: ReplacementModel,
    trainee: Trainee,
    tokens: Int[Tensor, "rows context"],
    where: Where,
    sharp: bool = False,
    sparse: list[bool] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """KL from the model's next-token distribution to that of the replacement, with gradients.

    Args:
        model: the model; its own dictionary is not used.
        trainee: what stands in.
        tokens: ids.
        where: which positions are kept.
        sharp: compare sharpened distributions too.
        sparse: for each layer, whether few features fire; None computes with all.

    Returns:
        Nats a token, over all positions that count; the same of distributions sharpened
        `SHARPNESS` times, 0 unless asked for.
    """
    standing = Standing(trainee, sparse or [False] * len(trainee.wiring.layers))
    keep = counted(model, tokens, where)
    with torch.no_grad():
        own = logits_of(model, tokens)[keep].float()
    with replaced(model, where, stand_in=standing):
        other = logits_of(model, tokens)[keep].float()
    away = _nats(own, other)
    return away, _nats(SHARPNESS * own, SHARPNESS * other) if sharp else away.new_zeros(())


def _nats(own: Float[Tensor, "tokens vocabulary"], other: Tensor) -> Float[Tensor, ""]:
    truth, guess = own.log_softmax(-1), other.log_softmax(-1)
    return (truth.exp() * (truth - guess)).sum(-1).mean()


def shared_divergence(
    model: ReplacementModel,
    trainee: Trainee,
    tokens: Int[Tensor, "rows context"],
    where: Where,
    weight: float,
    sharp: float = 0.0,
    sparse: list[bool] | None = None,
) -> float:
    """The same of rows that ranks share out, each with the whole dictionary.

    Args:
        model: the model.
        trainee: one rank's features, whose gradients `weight` times the divergence is added to.
        tokens: ids of all rows.
        where: which positions are kept.
        weight: of the divergence.
        sharp: of the sharpened one, times `weight`.
        sparse: as of `divergence`.

    Returns:
        Nats a token, over all positions of all rows that count.
    """
    ranks, found = trainee.ranks, whole(trainee)
    mine = tokens[ranks.number :: ranks.count]
    count = counted(model, mine, where).sum().to(found.b_dec[0])
    share, away = count / ranks.over_all(count), torch.zeros_like(count)
    if count:
        away, sharper = divergence(model, found, mine, where, sharp > 0, sparse)
        away = share * away
        (weight * (away + sharp * share * sharper)).backward()
    take_gradients(trainee, found)
    return float(ranks.over_all(away.detach()))
