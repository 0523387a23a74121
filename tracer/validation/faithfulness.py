"""Does the pruned circuit, left alone, still do what the model does?

What is left of the clean run's lead, m(C) / m(M), flatters where the lead survives without any
circuit. Beside it stands the share above nothing, (m(C) - m(0)) / (m(M) - m(0)): faithfulness as
Marks et al. 2025, "Sparse Feature Circuits", define it, m(0) being everything at its mean.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tracer.validation.circuit import Circuit, alone, circuit_of
from tracer.validation.held import ATTENTION, HELD, NORMS, NOTHING
from tracer.validation.means import Means
from tracer.validation.spread import spread
from tracer.validation.subject import Subject

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
EDGES = 0.98
DEFAULT = 0.8
MATTERS = 0.01
"""A node matters where leaving it out moves the target's lead by this share of the clean one."""
LEAST = 0.1
"""With less than this share of the lead to gain over nothing, a share above nothing is noise."""
PARTS = ("circuit", "silent_left", "without_errors", "rest", "ablated")
"""What is run of every circuit, in this order."""
SUFFIX = {NOTHING: "", ATTENTION: "_attention_held", NORMS: "_norms_held"}
"""Of a column of `Faithfulness.curve`, by what was held."""


@dataclass(frozen=True)
class Faithfulness:
    """Shares of the clean run's lead of the target over its strongest competitor."""

    clean: float
    """The lead itself, in logits."""
    curves: dict[str, list[dict[str, Any]]]
    """By what was held (`held.HELD`), one row a threshold: features, errors, then what survives in
    the circuit with its errors (`circuit`, and of that what is `above_empty`), with features that
    never fired left alone as well, without any error, in all the rest of the graph, in the model
    with only the circuit at its mean (`ablated`), and in random circuits of equal size, as
    mean and as spread."""
    empty: dict[str, float]
    """What survives with nothing kept, by what was held."""
    minimal: dict[str, float | None]
    """Share of the default circuit's nodes that matter when left out alone; None without nodes."""
    answers: dict[str, int]
    """The likeliest token with the default circuit alone."""
    ablated: dict[str, dict[str, float | int | None]]
    """Spread of what is left with a random circuit of the default one's size at its mean."""

    @property
    def curve(self) -> list[dict[str, Any]]:
        """One row a threshold, what was held in the names of columns (SUFFIX)."""
        return [
            {name: value for row, held in zip(rows, HELD, strict=True) for name, value in
             _columns(row, SUFFIX[held])}
            for rows in zip(*(self.curves[held] for held in HELD), strict=True)
        ]  # fmt: skip

    def at(self, threshold: float = DEFAULT, held: str = NOTHING) -> dict[str, Any]:
        """The row of one threshold."""
        return next(row for row in self.curves[held] if row["nodes"] == threshold)

    def summary(self) -> dict[str, Any]:
        """The default threshold's row, the same with parts held, and what belongs to no row."""
        return {
            **self.at(),
            "edges": EDGES,
            "clean": self.clean,
            "empty": self.empty[NOTHING],
            "minimal": self.minimal[NOTHING],
            "held": {
                held: {
                    **{name: value for name, value in self.at(held=held).items() if name in SHARES},
                    "empty": self.empty[held],
                    "minimal": self.minimal[held],
                    "answer": self.answers[held],
                    "random_ablated": self.ablated[held],
                }
                for held in HELD
            },
        }


SHARES = (*PARTS, "above_empty", "random", "random_spread")


def _columns(row: dict[str, Any], suffix: str) -> list[tuple[str, Any]]:
    """A row's values under flat names; what is the same whatever is held only once."""
    flat: list[tuple[str, Any]] = []
    for name, value in row.items():
        if name == "random_spread":
            parts = ("lower", "median", "upper", "below_half")
            flat += [(f"random_{part}{suffix}", value[part]) for part in parts]
        elif name in SHARES or not suffix:
            flat.append((f"{name}{suffix}", value))
    return flat


@dataclass(frozen=True)
class _Plan:
    """All circuits that are run, once for each thing held."""

    sizes: list[dict[str, Any]]
    """nodes (the threshold), features, errors, a row each."""
    rows: list[list[Circuit]]
    """The parts of each threshold's circuit, then random circuits."""
    ablated: list[Circuit]
    """The model without each of the default threshold's random circuits."""
    smaller: list[Circuit]
    """The default circuit without one node each."""

    @property
    def circuits(self) -> list[Circuit]:
        """All of them, the empty one first."""
        listed = [one for row in self.rows for one in row]
        return [Circuit(frozenset(), frozenset()), *listed, *self.ablated, *self.smaller]


def faithfulness(subject: Subject, means: Means, draws: int = 10, seed: int = 0) -> Faithfulness:
    """Mean-ablate everything outside circuits of many sizes, with nothing held, and held.

    `rest` against `empty` is completeness of Wang et al. 2023, "Interpretability in the Wild", only
    for their case K = C: the whole circuit is taken away, and no part of it. `minimal` is their
    minimality only for K empty: nodes are left out of the whole circuit, not of its parts. Both can
    pass where their search over K would fail.

    Args:
        subject: what is validated.
        means: of the corpus.
        draws: random circuits at each threshold.
        seed: of the random circuits.
    """
    logits = subject.recording.logits_before_cap[-1:]
    clean = float(subject.aim.lead(logits))
    plan = _plan(subject, draws, seed)
    found = {held: alone(subject, means, plan.circuits, held) for held in HELD}
    shares = {held: kept.lead / clean for held, kept in found.items()}
    rows = 1 + sum(map(len, plan.rows))
    ends = rows, rows + len(plan.ablated)
    return Faithfulness(
        clean=clean,
        curves={held: _curve(plan, kept) for held, kept in shares.items()},
        empty={held: float(kept[0]) for held, kept in shares.items()},
        minimal={held: _minimal(plan, kept, ends[1]) for held, kept in shares.items()},
        answers={held: int(kept.answers[_default(plan)]) for held, kept in found.items()},
        ablated={held: spread(kept[ends[0] : ends[1]]) for held, kept in shares.items()},
    )


def _plan(subject: Subject, draws: int, seed: int) -> _Plan:
    whole, random = circuit_of(subject.graph), np.random.default_rng(seed)
    layers, positions = len(subject.model.host.blocks), len(subject.tokens)
    plan = _Plan([], [], [], [])
    for nodes in THRESHOLDS:
        one = circuit_of(subject.graph.prune(nodes, EDGES))
        drawn = [one.drawn(whole, random) for _ in range(draws)]
        parts = [one, one.silent_left(whole), one.without_errors(), one.complement(whole)]
        plan.rows.append([*parts, one.removed(layers, positions), *drawn])
        sizes = {"features": len(one.features), "errors": len(one.errors)}
        plan.sizes.append({"nodes": nodes, **sizes})
        if nodes == DEFAULT:
            plan.ablated.extend(other.removed(layers, positions) for other in drawn)
            plan.smaller.extend(_smaller(one))
    return plan


def _smaller(circuit: Circuit) -> list[Circuit]:
    """The circuit without each of its nodes."""
    features, errors = circuit.features, circuit.errors
    without = [Circuit(features - {one}, errors) for one in sorted(features)]
    return [*without, *(Circuit(features, errors - {one}) for one in sorted(errors))]


def _curve(plan: _Plan, kept: Float[np.ndarray, " circuits"]) -> list[dict[str, Any]]:
    curve, start = [], 1
    for sizes, circuits in zip(plan.sizes, plan.rows, strict=True):
        mine = kept[start : start + len(circuits)]
        start += len(circuits)
        drawn = mine[len(PARTS) :]
        curve.append(
            {
                **sizes,
                **dict(zip(PARTS, mine.tolist(), strict=False)),
                "above_empty": above(float(mine[0]), float(kept[0])),
                "random": float(drawn.mean()) if len(drawn) else float("nan"),
                "random_spread": spread(drawn),
            }
        )
    return curve


def above(kept: float, empty: float) -> float | None:
    """What a circuit keeps beyond what nothing keeps, as a share of what it could.

    Args:
        kept: of the clean lead, with the circuit alone.
        empty: of the clean lead, with nothing kept.

    Returns:
        1 for as much as the model, 0 for as little as nothing; None where less than LEAST of the
        lead is there to gain.

    Source: Marks et al. 2025, "Sparse Feature Circuits", section on faithfulness.
    """
    return (kept - empty) / (1 - empty) if 1 - empty >= LEAST else None


def _default(plan: _Plan) -> int:
    """Where the default threshold's circuit stands among all."""
    return 1 + sum(map(len, plan.rows[: THRESHOLDS.index(DEFAULT)]))


def _minimal(plan: _Plan, kept: Float[np.ndarray, " circuits"], start: int) -> float | None:
    """Share of the nodes whose removal moves the lead by MATTERS of the clean one, up or down."""
    if not plan.smaller:
        return None
    moved = np.abs(kept[start:] - kept[_default(plan)])
    return float((moved >= MATTERS).mean())
