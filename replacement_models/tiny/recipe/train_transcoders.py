"""Train the transcoders of the embedded default: a cross-layer one and a per-layer one.

JumpReLU dictionaries on normalised inputs and outputs (Ameisen et al. 2025, section "Building an
interpretable replacement model"): squared error, a saturating penalty on activations times decoder
norms, and a small pull on features that have not fired lately. A second stage adds the divergence
between the model and itself with every MLP replaced at once. The start token takes no part.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replacement_models.dictionaries.activation import JumpReLU
from replacement_models.dictionaries.cross_layer import CrossLayerTranscoder
from replacement_models.dictionaries.per_layer import PerLayerTranscoder
from replacement_models.hooks import forward_hooks
from replacement_models.tiny.recipe.corpus import (
    CITY,
    Encoder,
    Source,
    induction,
    mixture,
    pack,
    sentences,
)
from replacement_models.tiny.recipe.taps import mlps, recorded_mlps
from replacement_models.transcoder import DenseDecoder, Transcoder, TranscoderLayer

log = logging.getLogger(__name__)
SHARPNESS = 4.0
SAME_DIRECTION = 0.05
"""Clusters of outputs whose centres' cosine is at least 1 less this start as one feature."""
DETECTOR_RATE = 0.1
DETECTOR_BALANCE = 8.0
"""Weight of a token inside a detector's cluster; those outside have 1."""


@dataclass(frozen=True)
class Stage:
    """One stretch of training with an optimiser and sentences of its own.

    Attributes:
        steps: steps taken.
        rate: peak learning rate of Adam.
        sparsity: weight of the penalty, per layer; ramped over the first half where there is no
            divergence yet.
        divergence: weight of the end-to-end divergence, per nat.
        repeats: share of random repeats among the sentences.
        seed: of the sentences.
        city_weight: weight of squared errors at cities in sentences about states; others have 1.
        sharp: weight, relative to the divergence, of the same between distributions sharpened
            `SHARPNESS` times: which token comes first, where several are about as likely.
        revive: weight of the pull on features silent for `patience` steps.
        restart_every: steps between restarts of features silent for as long, but not in the last
            40 % of a stage.
    """

    steps: int
    rate: float
    sparsity: tuple[float, float, float, float]
    divergence: float
    repeats: float
    seed: int
    city_weight: float = 1.0
    sharp: float = 0.0
    revive: float = 6e-3
    restart_every: int = 150


CROSS_LAYER_STAGES = (
    Stage(1100, 2e-3, (3e-3, 4.5e-3, 3.5e-3, 2.5e-3), 0.0, 0.08, 100),
    Stage(1200, 1e-3, (1.5e-3, 4.6e-3, 3.5e-3, 2e-3), 1.0, 0.06, 103, sharp=0.4),
    Stage(1000, 8e-4, (1.2e-3, 4.6e-3, 3.5e-3, 2e-3), 2.0, 0.05, 107, sharp=0.7),
    Stage(1000, 1e-3, (8e-4, 3.6e-3, 3.5e-3, 1.6e-3), 0.5, 0.06, 108, sharp=1.2),
    Stage(700, 1e-3, (8e-4, 2.9e-3, 3.4e-3, 1.6e-3), 0.25, 0.05, 109, sharp=1.5),
    Stage(900, 1e-3, (4e-4, 2.3e-3, 3e-3, 5e-4), 0.25, 0.05, 110, 3.0, 1.5, 2e-2, 120),
    Stage(600, 7e-4, (4e-4, 2.9e-3, 3.1e-3, 9e-4), 0.25, 0.05, 111, 3.0, 1.5, 1e-2, 120),
    Stage(350, 5e-4, (4e-4, 5e-3, 3.3e-3, 9e-4), 0.25, 0.05, 112, 3.0, 1.5, 1e-2, 120),
    Stage(250, 3e-4, (4e-4, 4.6e-3, 3.6e-3, 9e-4), 0.25, 0.05, 113, 3.0, 1.5, 5e-2, 80),
)
PER_LAYER_STAGES = (
    Stage(800, 2e-3, (4e-3, 4.5e-3, 4e-3, 3e-3), 0.0, 0.06, 100),
    Stage(500, 1e-3, (3e-3, 4.5e-3, 4e-3, 2.5e-3), 0.7, 0.06, 101, sharp=0.7),
)


@dataclass(frozen=True)
class TranscoderRecipe:
    """Every number of a transcoder's training.

    Attributes:
        cross_layer: whether features write to later layers too.
        stages: what is done in order, two of them at least.
        last_share: weight of the last stage's end in the mean with the end of the stage before it.
        features: dictionary size of every layer.
        rows: rows of `context` tokens a step.
        bandwidth: width of the straight-through window around a threshold.
        threshold: initial threshold, in units of the normalised input.
        fire_share: share of tokens every feature fires on at the start.
        clustered: clusters of outputs that features start at, as a share of all features, before
            those with the same direction are merged.
        start_batches: batches that scales and first features are read off.
        detector_steps: steps that fit the first encoder rows.
        patience: steps after which a silent feature is pulled.
    """

    cross_layer: bool = True
    stages: tuple[Stage, ...] = CROSS_LAYER_STAGES
    last_share: float = 0.4
    features: int = 1024
    rows: int = 14
    context: int = 64
    bandwidth: float = 0.4
    threshold: float = 0.7
    fire_share: float = 0.01
    clustered: float = 0.7
    start_batches: int = 96
    detector_steps: int = 2500
    patience: int = 25
    warmup: int = 50
    log_every: int = 50
    seed: int = 0


class _Jump(torch.autograd.Function):
    """JumpReLU whose threshold learns through a rectangular window (Rajamanoharan et al. 2024)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(hidden, threshold)
        ctx.bandwidth = bandwidth
        return hidden * (hidden > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, threshold = ctx.saved_tensors
        near = (hidden - threshold).abs() < ctx.bandwidth / 2
        pull = -(grad * near).sum(0) * threshold / ctx.bandwidth
        return grad * (hidden > threshold), pull, None


@dataclass(frozen=True)
class Scales:
    """Per layer: mean (D) and root mean square deviation of MLP inputs and outputs."""

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    @classmethod
    def of(cls, inputs: Tensor, outputs: Tensor) -> "Scales":
        """Measure them on inputs and outputs (layers, tokens, D)."""
        means = inputs.mean(1), outputs.mean(1)
        spreads = [
            (data - mean[:, None]).square().mean((1, 2)).sqrt()
            for data, mean in zip((inputs, outputs), means, strict=True)
        ]
        return cls(means[0], spreads[0], means[1], spreads[1])


def averages(data: Tensor, member: Tensor, count: int) -> Tensor:
    """Return the mean of `data` (tokens, D) in each of `count` clusters; empty ones get zeros."""
    sums = torch.zeros(count, data.shape[1]).index_add_(0, member, data)
    return sums / torch.bincount(member, minlength=count).clamp_min(1)[:, None]


def clusters(data: Tensor, count: int, generator: torch.Generator, rounds: int = 8) -> Tensor:
    """Return the cluster of each row of `data` (tokens, D), numbered from 0.

    k-means started at random rows; then clusters whose centres point the same way become one.
    """
    centres = data[torch.randperm(len(data), generator=generator)[:count]]
    for _ in range(rounds):
        distance = centres.square().sum(1) - 2 * data @ centres.T
        member = distance.argmin(1)
        centres = averages(data, member, count)
    used, member = member.unique(return_inverse=True)
    tree = linkage(centres[used].numpy(), "average", metric="cosine")
    merged = torch.from_numpy(fcluster(tree, SAME_DIRECTION, "distance") - 1).long()
    return merged[member]


def detectors(
    x: Tensor, member: Tensor, recipe: "TranscoderRecipe", generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return rows (clusters, D) and biases that tell each cluster's inputs from all others.

    What a linear map can do: pre-activations of twice the threshold inside a cluster, and below
    half of it outside, in one-sided least squares.

    Args:
        x: inputs (tokens, D).
        member: the cluster of each.
        recipe: gives the threshold.
        generator: draws the samples.
    """
    count, wanted = int(member.max()) + 1, 2 * recipe.threshold
    rows, bias = torch.zeros(count, x.shape[1]), torch.zeros(count)
    rows, bias = rows.requires_grad_(), bias.requires_grad_()
    optim = torch.optim.Adam((rows, bias), lr=DETECTOR_RATE)
    for step in range(recipe.detector_steps):
        chosen = torch.randint(len(x), (1024,), generator=generator)
        hidden = torch.addmm(bias, x[chosen], rows.T)
        own = nn.functional.one_hot(member[chosen], count).bool()
        missed = torch.where(own, hidden - wanted, torch.relu(hidden - recipe.threshold / 2))
        missed.square().mul(1 + (DETECTOR_BALANCE - 1) * own).sum().div(len(chosen)).backward()
        for group in optim.param_groups:
            group["lr"] = DETECTOR_RATE * max(0.02, 1 - step / recipe.detector_steps)
        optim.step()
        optim.zero_grad()
    return rows.detach(), bias.detach()


@dataclass(frozen=True)
class Recorded:
    """One batch: token ids, the model's MLPs on them without the first token, and its logits.

    Attributes:
        ids: (rows, positions).
        inputs: what every MLP read (tokens, D), layer by layer.
        outputs: what it returned, likewise.
        weight: of each token's squared error (tokens).
        logits: (rows, positions, V).
    """

    ids: Tensor
    inputs: list[Tensor]
    outputs: list[Tensor]
    weight: Tensor
    logits: Tensor


class Trainee(nn.Module):
    """A transcoder in training, in normalised units."""

    def __init__(self, recipe: TranscoderRecipe, inputs: Tensor, outputs: Tensor) -> None:
        """Start from data: a feature for every cluster of outputs, others in random directions.

        Args:
            recipe: sizes and starting values.
            inputs: MLP inputs (layers, tokens, D), at least `features` tokens.
            outputs: MLP outputs, likewise.
        """
        super().__init__()
        self.recipe = recipe
        self.scales = Scales.of(inputs, outputs)
        self.layers, _, self.width = inputs.shape
        self.enc, self.bias, self.dec = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        self.threshold = nn.ParameterList()
        self.out = nn.Parameter(torch.zeros(self.layers, self.width))
        self.silent = torch.zeros(self.layers, recipe.features)
        generator = torch.Generator().manual_seed(recipe.seed)
        for layer in range(self.layers):
            x, y = self.normalised(layer, inputs[layer]), self.wanted(layer, outputs[layer])
            self._start(layer, x, y, generator)

    def _start(self, layer: int, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        """Add the parameters of one layer, given its normalised inputs and outputs (tokens, D).

        A cluster's encoder row is its detector, its decoder row the mean output.
        """
        recipe = self.recipe
        member = clusters(y, int(recipe.features * recipe.clustered), generator)
        count = int(member.max()) + 1
        log.info("layer %d starts from %d clusters", layer, count)
        rows = torch.randn(recipe.features, self.width, generator=generator)
        rows = rows / rows.norm(dim=1, keepdim=True)
        bias = recipe.threshold - (x @ rows.T).quantile(1 - recipe.fire_share, dim=0)
        rows[:count], bias[:count] = detectors(x, member, recipe, generator)
        size = recipe.features, self.targets(layer) * self.width
        dec = 0.05 * torch.randn(size, generator=generator) / self.width**0.5
        dec[:count, : self.width] = averages(y, member, count) / (2 * recipe.threshold)
        self.enc.append(rows)
        self.bias.append(bias)
        self.dec.append(dec)
        self.threshold.append(torch.full((recipe.features,), recipe.threshold))

    def targets(self, layer: int) -> int:
        """Return how many layers the features of `layer` write to."""
        return self.layers - layer if self.recipe.cross_layer else 1

    def normalised(self, layer: int, x: Tensor) -> Tensor:
        """Return MLP inputs in normalised units."""
        return (x - self.scales.input_mean[layer]) / self.scales.input_scale[layer]

    def wanted(self, layer: int, y: Tensor) -> Tensor:
        """Return MLP outputs in normalised units."""
        return (y - self.scales.output_mean[layer]) / self.scales.output_scale[layer]

    def encode(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return pre-activations and activations (tokens, features) of raw MLP inputs."""
        hidden = torch.addmm(self.bias[layer], self.normalised(layer, x), self.enc[layer].T)
        threshold = self.threshold[layer]
        active: Tensor = _Jump.apply(hidden, threshold, self.recipe.bandwidth)  # type: ignore[no-untyped-call]
        return hidden, active

    def writes(self, layer: int, active: Tensor) -> Tensor:
        """Return what activations write to every target (tokens, targets, D), normalised."""
        return (active @ self.dec[layer]).view(len(active), self.targets(layer), self.width)

    @torch.no_grad()
    def restart(self, batch: Recorded, patience: int) -> list[int]:
        """Point features silent for `patience` steps at tokens that are badly explained.

        Returns:
            How many features of each layer were restarted.
        """
        inputs, outputs = batch.inputs, batch.outputs
        counts = []
        total = [self.out[layer] for layer in range(self.layers)]
        for layer in range(self.layers):
            writes = self.writes(layer, self.encode(layer, inputs[layer])[1])
            for slot in range(self.targets(layer)):
                total[layer + slot] = total[layer + slot] + writes[:, slot]
            missing = self.wanted(layer, outputs[layer]) - total[layer]
            lost = (self.silent[layer] > patience).nonzero()[:, 0]
            counts.append(len(lost))
            if len(lost):
                chosen = torch.multinomial(missing.square().sum(1), len(lost), replacement=True)
                x = self.normalised(layer, inputs[layer][chosen])
                length = x.norm(dim=1)
                self.enc[layer][lost] = x / length[:, None]
                self.bias[layer][lost] = self.recipe.threshold - 0.8 * length
                self.threshold[layer][lost] = self.recipe.threshold
                self.dec[layer][lost] = 0.0
                self.dec[layer][lost, : self.width] = missing[chosen] / (0.4 * length[:, None])
                self.silent[layer][lost] = 0
        return counts

    def finished(self, model: str) -> Transcoder:
        """Fold the normalisation into the weights; encoder and decoder rounded to float16."""
        scales, layers = self.scales, []
        for layer in range(self.layers):
            enc = (self.enc[layer] / scales.input_scale[layer]).detach()
            bias = (self.bias[layer] - enc @ scales.input_mean[layer]).detach()
            reach = slice(layer, layer + self.targets(layer))
            dec = self.dec[layer].view(-1, self.targets(layer), self.width)
            dec = (dec * scales.output_scale[reach, None]).detach()
            out = self.out[layer] * scales.output_scale[layer] + scales.output_mean[layer]
            threshold = self.threshold[layer].detach().clone()
            layers.append(
                TranscoderLayer(
                    enc.half(), bias, DenseDecoder(dec.half()), out.detach(), JumpReLU(threshold)
                )
            )
        kind = CrossLayerTranscoder if self.recipe.cross_layer else PerLayerTranscoder
        return kind(layers, model=model)


@contextmanager
def replaced_mlps(model: GPT2LMHeadModel, trainee: Trainee) -> Iterator[None]:
    """Let the trainee stand in for every MLP at once, at all positions but the first.

    Apart from `replaced.py`, since a trainee is no transcoder yet: normalised units, soft jumps.
    """
    written: list[Tensor] = []

    def stand_in(args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        layer, x = len(written), args[0][:, 1:]
        active = trainee.encode(layer, x.reshape(-1, x.shape[-1]))[1]
        written.append(trainee.writes(layer, active))
        total = trainee.out[layer]
        for source, writes in enumerate(written):
            if layer - source < trainee.targets(source):
                total = total + writes[:, layer - source]
        raw = total * trainee.scales.output_scale[layer] + trainee.scales.output_mean[layer]
        return torch.cat((output[:, :1], raw.view(x.shape)), 1)

    with forward_hooks((mlp, stand_in) for mlp in mlps(model)):
        yield


@dataclass(frozen=True)
class Report:
    """Measures of one batch, per layer: squared error shares, active features, penalty."""

    error: Tensor
    density: Tensor
    penalty: Tensor
    pull: Tensor


def reconstruct(trainee: Trainee, batch: Recorded) -> Report:
    """Compare the trainee with recorded MLPs and count who fired."""
    inputs, outputs, weight = batch.inputs, batch.outputs, batch.weight
    total = [trainee.out[layer] for layer in range(trainee.layers)]
    density, penalty, pull = [], [], []
    for layer in range(trainee.layers):
        hidden, active = trainee.encode(layer, inputs[layer])
        writes = trainee.writes(layer, active)
        for slot in range(trainee.targets(layer)):
            total[layer + slot] = total[layer + slot] + writes[:, slot]
        norms = trainee.dec[layer].norm(dim=1)
        penalty.append(torch.tanh(active * norms).sum() / len(active))
        with torch.no_grad():
            fired = (active > 0).any(0)
            density.append((active > 0).sum() / len(active))
            trainee.silent[layer] = (trainee.silent[layer] + 1) * ~fired
            lost = (trainee.silent[layer] > trainee.recipe.patience).nonzero()[:, 0]
        short = torch.relu(trainee.threshold[layer][lost] - hidden[:, lost])
        pull.append((short * norms[lost]).sum() / len(active))
    errors = []
    for layer, guess in enumerate(total):
        want = trainee.wanted(layer, outputs[layer])
        missed = (weight * (want - guess).square().sum(1)).sum()
        errors.append(missed / (want - want.mean(0)).square().sum())
    return Report(*(torch.stack(part) for part in (errors, density, penalty, pull)))


def divergence(model: GPT2LMHeadModel, trainee: Trainee, batch: Recorded, sharp: float) -> Tensor:
    """KL in nats a token between the model and itself with all MLPs replaced, first token left out.

    Args:
        model: the frozen model.
        trainee: what stands in.
        batch: token ids and the model's own logits.
        sharp: weight of the same divergence between sharpened distributions, which is added.
    """
    with replaced_mlps(model, trainee):
        other = model(batch.ids).logits[:, 1:]
    own = batch.logits[:, 1:]
    away = _kl(own, other)
    return away + sharp * _kl(SHARPNESS * own, SHARPNESS * other) if sharp else away


def _kl(logits: Tensor, other: Tensor) -> Tensor:
    truth, guess = logits.log_softmax(-1), other.log_softmax(-1)
    return (truth.exp() * (truth - guess)).sum(-1).mean()


def _rate(step: int, steps: int, warmup: int) -> float:
    """Warm up, stay, and fall linearly over the last 40 %."""
    return min(1.0, (step + 1) / warmup, max(0.02, (steps - step) / (0.4 * steps)))


class TranscoderTraining:
    """One run over a frozen model."""

    def __init__(
        self,
        recipe: TranscoderRecipe,
        model: GPT2LMHeadModel,
        source: Source,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.recipe, self.model = recipe, model.requires_grad_(False).eval()
        self._source, self._encode = source, Encoder(tokenizer)
        sample = list(itertools.islice(self.batches(recipe.stages[0]), recipe.start_batches))
        sides = zip(*((batch.inputs, batch.outputs) for batch in sample), strict=True)
        inputs, outputs = (
            torch.stack([torch.cat(parts) for parts in zip(*side, strict=True)]) for side in sides
        )
        self.trainee = Trainee(recipe, inputs, outputs)

    def batches(self, stage: Stage) -> Iterator[Recorded]:
        """Run the model on a stage's sentences, batch by batch, for ever."""
        families = mixture(induction, stage.repeats)
        stream = sentences(self._source, stage.seed, families)
        while True:
            yield self._recorded(stream, stage.city_weight)

    @torch.no_grad()
    def _recorded(self, stream: Iterator[str], city_weight: float) -> Recorded:
        rows, context = self.recipe.rows, self.recipe.context
        packed = pack(stream, self._encode, rows, context)
        ids, kinds = (torch.from_numpy(array).long() for array in packed)
        with recorded_mlps(self.model) as (inputs, outputs):
            logits = self.model(ids).logits
        flat = [[x[:, 1:].flatten(0, 1) for x in side] for side in (inputs, outputs)]
        weight = 1 + (city_weight - 1) * (kinds[:, 1:] == CITY).flatten()
        return Recorded(ids, flat[0], flat[1], weight, logits)

    def run(self) -> None:
        """Run every stage, average the ends of the last two, and wake what fell silent."""
        ends: list[dict[str, Tensor]] = []
        for number in range(len(self.recipe.stages)):
            self.stage(number)
            ends.append({key: value.clone() for key, value in self.trainee.state_dict().items()})
        before, last = ends[-2:]
        share = self.recipe.last_share
        self.trainee.load_state_dict({key: before[key].lerp(last[key], share) for key in last})
        self.restore(ends[::-1])

    @torch.no_grad()
    def restore(self, ends: Sequence[dict[str, Tensor]]) -> None:
        """Give features that fire on none of `start_batches` batches of sentences old weights.

        Args:
            ends: the trainee's states that they are taken from, each where those before it did not
                help.
        """
        trainee, last = self.trainee, self.recipe.stages[-1]
        stream = self.batches(replace(last, repeats=0.0, seed=last.seed + 1))
        read = [batch.inputs for batch in itertools.islice(stream, self.recipe.start_batches)]
        for end in ends:
            ever = torch.zeros(trainee.layers, self.recipe.features, dtype=torch.bool)
            for layer, inputs in itertools.product(range(trainee.layers), read):
                ever[layer] |= (trainee.encode(layer, inputs[layer])[1] > 0).any(0)
            for name in ("enc", "bias", "dec", "threshold"):
                for layer, lost in enumerate(~ever):
                    getattr(trainee, name)[layer][lost] = end[f"{name}.{layer}"][lost]
            log.info("restored %s", (~ever).sum(1).tolist())

    def stage(self, number: int) -> None:
        """Run one stage."""
        recipe, trainee, stage = self.recipe, self.trainee, self.recipe.stages[number]
        optim = torch.optim.Adam(trainee.parameters(), lr=stage.rate, betas=(0.9, 0.99))
        start = time.time()
        for step, batch in enumerate(itertools.islice(self.batches(stage), stage.steps)):
            report = reconstruct(trainee, batch)
            ramp = 1.0 if stage.divergence else min(1.0, 2 * step / stage.steps)
            away = torch.zeros(())
            if stage.divergence:
                away = divergence(self.model, trainee, batch, stage.sharp)
            loss = self._loss(report, stage, ramp) + stage.divergence * away
            for group in optim.param_groups:
                group["lr"] = stage.rate * _rate(step, stage.steps, recipe.warmup)
            loss.backward()
            optim.step()
            optim.zero_grad()
            with torch.no_grad():
                for threshold in trainee.threshold:
                    threshold.clamp_(min=0.05)
            if step % stage.restart_every == 0 and step < 0.6 * stage.steps:
                log.info("restarted %s", trainee.restart(batch, stage.restart_every - 1))
            if (step + 1) % recipe.log_every == 0:
                self._log(number, step + 1, start, report, away)

    def _loss(self, report: Report, stage: Stage, ramp: float) -> Tensor:
        """Squared error, penalty and pull."""
        penalty = (torch.tensor(stage.sparsity) * report.penalty).sum()
        return report.error.sum() + ramp * penalty + stage.revive * report.pull.sum()

    def _log(self, number: int, step: int, start: float, report: Report, away: Tensor) -> None:
        dead = (self.trainee.silent > 150).float().mean(1)
        words = [
            f"{name} " + " ".join(f"{value:.3f}" for value in values.tolist())
            for name, values in (("FVU", report.error), ("L0", report.density), ("dead", dead))
        ]
        minutes = (time.time() - start) / 60
        log.info(
            "stage %d step %d %.1f min %s KL %.4f",
            number + 1,
            step,
            minutes,
            " ".join(words),
            float(away.detach()),
        )
