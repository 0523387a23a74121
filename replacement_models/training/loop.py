"""The loop: one step after another, a checkpoint now and then.

Everything that a step depends on is in the checkpoint or is drawn anew from numbers (pool.py), so a
run that was killed and taken up ends with the same weights, bit by bit on a CPU.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replacement_models.replaced import Where
from replacement_models.replacement import ReplacementModel
from replacement_models.training import checkpoint, shards
from replacement_models.training.config import TrainConfig
from replacement_models.training.dealt import DealtBatches
from replacement_models.training.divergence import divergence, shared_divergence
from replacement_models.training.firing import Active
from replacement_models.training.interrupt import Asked
from replacement_models.training.journal import Journal
from replacement_models.training.losses import Found, island_loss
from replacement_models.training.pool import Batches, Place
from replacement_models.training.product import Product, product_of
from replacement_models.training.revival import UNTIL, revive
from replacement_models.training.source import Source, trimmed
from replacement_models.training.sparsity import calibrate, follow, smoothed
from replacement_models.training.trainee import Batch, Trainee

CHECKPOINTS = "checkpoints"
LEAST_THRESHOLD = 0.02
"""Thresholds stay above it while they learn, in units of a pre-activation."""
PENALISED = ("jump_relu", "relu", "gated")
Step = Callable[[Mapping[str, Any]], None]
"""What is told of every step."""


@dataclass(eq=False)
class Loop:
    """One run between two of its steps."""

    config: TrainConfig
    folder: Path
    model: ReplacementModel | None
    """None where activations come from elsewhere."""
    trainee: Trainee
    source: Source | None
    """Of text; None likewise."""
    batches: Batches | DealtBatches
    held: Batch
    precision: str
    generator: torch.Generator
    done: int = 0
    seconds: float = 0.0
    """That the steps have taken, all parts of the run together."""
    cpu_seconds: float = 0.0
    """The same of processor time."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What was measured on the way, for the end."""
    on_divergence: Callable[[], Mapping[str, Any]] = dict
    """Measures the dictionary before the end-to-end stage."""
    on_measure: Callable[[], Mapping[str, Any]] = dict
    """Measures the dictionary as it stands, each `run.measure_every` steps."""

    def __post_init__(self) -> None:
        layers = len(self.trainee.wiring.layers)
        like = self.trainee.b_dec[0]
        start = self.config.loss.penalty_start
        if len(start) not in (1, layers):
            raise self.config.loss.wrong("penalty_start", f"one number, or {layers}", start)
        self.log_weight = torch.tensor(start, device=like.device).expand(layers).log()
        self.l0 = torch.tensor(self.trainee.l0, device=like.device)
        self.optimiser = _adam(self.config, self.trainee)
        self.product: Product = product_of(self.precision)
        self.ranks = self.trainee.ranks

    # What is kept

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds, by name; what `load` fills."""
        found = {
            f"weights.{name}": shards.stored(name, value, self.ranks)
            for name, value in self.trainee.state_dict().items()
        }
        found |= {f"scales.{name}": value for name, value in self.trainee.scales().items()}
        for name, parameter in self.trainee.named_parameters():
            state = self.optimiser.state[parameter]
            found |= {
                f"adam.{name}.{key}": shards.stored(name, value, self.ranks)
                for key, value in state.items()
            }
        return found | {"log_weight": self.log_weight, "l0": self.l0}

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "step": self.done,
            "place": asdict(self.batches.place),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "notes": self.notes,
            "precision": self.precision,
            "harvested": self.harvested,
        }
        drawn = {"generator": self.generator.get_state()}
        tensors = self.tensors() | drawn
        checkpoint.save(self.folder / CHECKPOINTS, self.done, tensors, state, self.ranks)

    def take_up(self, path: Path, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        drawn = self.generator.get_state()
        checkpoint.load(path, self.tensors() | {"generator": drawn}, self.ranks)
        self.generator.set_state(drawn)
        self.done, self.seconds = int(state["step"]), float(state["seconds"])
        self.cpu_seconds = float(state["cpu_seconds"])
        self.batches.place = Place(**state["place"])
        self.notes = dict(state["notes"])
        if self.source is not None:
            self.source.harvested = int(state["harvested"]) if self.ranks.first else 0

    @property
    def harvested(self) -> int:
        """Tokens that the model has run over, on all ranks."""
        own = 0 if self.source is None else self.source.harvested
        return int(self.ranks.over_all(torch.tensor(own, device=self.l0.device)))

    # What is done

    def new(self) -> Iterator[Batch]:
        """Batches of tokens that no step has seen, while the text has some; one may go over."""
        while self.batches.place.pool < self.batches.chunks:
            yield next(self.batches)

    def run(self, journal: Journal | None, asked: Asked, told: Step) -> None:
        """Every step that is left; ranks but the first one have no journal.

        Raises:
            KeyboardInterrupt: somebody asked to stop; the checkpoint is written.
        """
        run = self.config.run
        if self._measuring():
            nothing = {"step": 0, "tokens": 0, "seconds": 0.0, "cpu_seconds": 0.0}
            self._log(journal, nothing)
        begin = self.seconds - time.monotonic(), self.cpu_seconds - time.process_time()
        while self.done < self.config.steps:
            if self.done == self.first_divergent and "before_divergence" not in self.notes:
                calibrate(self.trainee, self.held, self.new())
                self.notes["before_divergence"] = dict(self.on_divergence())
            found, away = self.step(next(self.batches))
            stop = self.ranks.any(asked.stop, self.l0.device)
            self.done += 1
            self.seconds = begin[0] + time.monotonic()
            self.cpu_seconds = begin[1] + time.process_time()
            last = self.done == self.config.steps
            line = self._line(found, away)
            told(line)
            if self.done % run.log_every == 0 or last or self._measuring():
                self._log(journal, line)
                begin = self.seconds - time.monotonic(), self.cpu_seconds - time.process_time()
            if self.done % run.checkpoint_every == 0 or last or stop:
                self.save()
            if stop and not last:
                raise KeyboardInterrupt

    def _measuring(self) -> bool:
        """Whether the dictionary is measured as it stands now; the end measures it anyway."""
        every = self.config.run.measure_every
        return bool(every) and self.done % every == 0 and self.done < self.config.steps

    def _log(self, journal: Journal | None, line: dict[str, Any]) -> None:
        """Measure if it is time, on all ranks; write on the first. Takes none of the run's time."""
        if self._measuring():
            line["measured"] = dict(self.on_measure())
        if journal is not None:
            journal.write(line)

    def step(self, batch: Batch) -> tuple[list[Found], float | None]:
        """One step: every island forth and back, then Adam, then what follows L0 and the dead."""
        trainee, steps = self.trainee, self.config.steps
        weights = self.weights()
        found: list[Found] = []
        adding: list[Any] = []
        for island in trainee.wiring.islands:
            loss, reports = island_loss(
                trainee, batch, island, self.product, self.sparse(), weights
            )
            loss.backward()
            adding += self.ranks.adding(shards.gradients(trainee, island))
            found += reports
        for one in adding:
            one.wait()
        away = self._divergence() if self.done >= self.first_divergent else None
        self._descend()
        for at, report in enumerate(found):
            trainee.heard(at, report.fired, len(batch) * self.ranks.parts)
        self.l0 = smoothed(self.l0, torch.stack([report.l0 for report in found]))
        if self.penalised:
            follow(trainee, self.log_weight, self.l0)
        every = self.config.loss.revive_every
        if every and (self.done + 1) % every == 0 and self.done < UNTIL * steps:
            missing = [self._missing(batch, at) for at in range(len(found))]
            revive(trainee, batch, missing, self.optimiser, self.generator)
        return found, away

    @property
    def penalised(self) -> bool:
        """Whether a penalty holds L0."""
        return self.config.dictionary.activation in PENALISED

    @property
    def first_divergent(self) -> int:
        """The step at which the end-to-end stage begins; beyond the last where there is none."""
        share = self.config.divergence.share
        return round(self.config.steps * (1 - share)) if share else self.config.steps + 1

    def weights(self) -> Tensor:
        """Of each layer's penalty."""
        return self.log_weight.exp() if self.penalised else torch.zeros_like(self.log_weight)

    def sparse(self) -> list[bool]:
        """For each layer, whether so few features fire that pairs cost less."""
        share = self.config.run.sparse_below
        return [l0 < share * self.trainee.features_at(at) for at, l0 in enumerate(self.l0.tolist())]

    def _descend(self) -> None:
        optimiser, clip = self.config.optimiser, self.config.optimiser.clip
        if clip is not None:
            shards.clip(self.trainee, clip)
        rate = optimiser.rate * schedule(
            self.done, self.config.steps, optimiser.warmup, optimiser.decay
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for threshold in self.trainee.threshold:
                threshold.clamp_(min=LEAST_THRESHOLD)

    def _divergence(self) -> float:
        """Gradients of the end-to-end loss, over the next rows of text."""
        assert self.source is not None
        assert self.model is not None
        config, rows = self.config.divergence, self.source.rows.order
        first = (self.done - self.first_divergent) * config.rows
        numbers = rows[np.arange(first, first + config.rows) % len(rows)]
        tokens = torch.from_numpy(trimmed(self.source.tokens[numbers]).astype(np.int64))
        special = self.source.harvester.special
        tokens = torch.where(tokens < 0, min(special, default=0), tokens)
        tokens = tokens.to(self.model.device)
        given = self.model, self.trainee, tokens, self.where
        if self.ranks.count > 1:
            return shared_divergence(*given, config.weight, config.sharp, self.sparse())
        away, sharp = divergence(*given, config.sharp > 0, self.sparse())
        (config.weight * (away + config.sharp * sharp)).backward()
        return float(away.detach())

    @property
    def where(self) -> Where:
        """Which positions are replaced."""
        assert self.source is not None
        special = self.source.harvester.special
        return Where(skip_positions=self.config.data.skip_positions, keep_tokens=special)

    @torch.no_grad()
    def _missing(self, batch: Batch, at: int) -> Tensor:
        """Error of what is written to one layer, in normalised units."""
        trainee = self.trainee
        wiring = trainee.wiring
        x = trainee.reads[at].normalised(batch.inputs[at])
        wanted = trainee.writes[at].normalised(batch.outputs[at])
        left = self.ranks.once(wanted - trainee.base(at, x))
        for source in range(at + 1):
            if at in wiring.slots(source):
                read = trainee.reads[source].normalised(batch.inputs[source])
                active: Active = trainee.active(source, read, self.product, self.sparse()[source])
                written = trainee.writes_of(source, active, active.values)
                left = left - written[:, wiring.slots(source).index(at)]
        return self.ranks.over_shards(left)

    def _line(self, found: list[Found], away: float | None) -> dict[str, Any]:
        """What a step says of itself."""
        tokens = self.done * self.config.run.batch
        dead = (self.trainee.silent > self.config.loss.dead_after).float().mean(1)
        dead = self.ranks.over_shards(dead) / self.ranks.shards
        line = {
            "step": self.done,
            "tokens": tokens,
            "error": float(torch.stack([one.error for one in found]).mean()),
            "error_unweighted": float(torch.stack([one.plain for one in found]).mean()),
            "l0": float(self.l0.mean()),
            "dead": float(dead.mean()),
            "tokens_per_second": tokens / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "layers": {
                "error": _floats([one.error for one in found]),
                "l0": self.l0.tolist(),
                "dead": dead.tolist(),
                "penalty_weight": self.weights().tolist(),
            },
        }
        return line if away is None else line | {"divergence": away}


def schedule(step: int, steps: int, warmup: float, decay: float) -> float:
    """Share of the peak rate: up, level, and down to nothing over the last part."""
    up = (step + 1) / max(1.0, warmup * steps)
    down = (steps - step) / max(1.0, decay * steps)
    return min(1.0, up, down)


def _floats(tensors: list[Tensor]) -> list[float]:
    return [float(one) for one in tensors]


def _adam(config: TrainConfig, trainee: Trainee) -> torch.optim.Adam:
    """Adam with its averages made at once: a checkpoint must find them."""
    first, second = config.optimiser.betas
    parameters = list(trainee.parameters())
    fused = parameters[0].device.type in ("cpu", "cuda")
    optimiser = torch.optim.Adam(
        parameters, lr=config.optimiser.rate, betas=(first, second), fused=fused
    )
    for parameter in parameters:
        optimiser.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if fused else None),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimiser
