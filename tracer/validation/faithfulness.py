"""Does the pruned circuit, left alone, still do what the model does?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tracer.validation.circuit import Circuit, circuit_of, leads
from tracer.validation.means import Means
from tracer.validation.subject import Subject

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
EDGES = 0.98
DEFAULT = 0.8
MATTERS = 0.01
"""A node matters where leaving it out moves the target's lead by this share of the clean one."""


@dataclass(frozen=True)
class Faithfulness:
    """Shares of the clean run's lead of the target over its strongest competitor."""

    clean: float
    """The lead itself, in logits."""
    curve: list[dict[str, float]]
    """One row a threshold: features, errors, then what survives in the circuit with its errors,
    with features that never fired left alone as well, without any error, in random circuits of
    equal size, and in all the rest of the graph (completeness: little should)."""
    empty: float
    """What survives with nothing kept."""
    minimal: float | None
    """Share of the default circuit's nodes that matter when left out alone; None without nodes."""

    def at(self, threshold: float = DEFAULT) -> dict[str, float]:
        """The row of one threshold."""
        return next(row for row in self.curve if row["nodes"] == threshold)

    def summary(self) -> dict[str, Any]:
        """The default threshold's row and what belongs to no threshold."""
        return {
            **self.at(),
            "clean": self.clean,
            "empty": self.empty,
            "minimal": self.minimal,
        }


def faithfulness(subject: Subject, means: Means, draws: int = 10, seed: int = 0) -> Faithfulness:
    """Mean-ablate everything outside circuits of many sizes.

    Args:
        subject: what is validated.
        means: of the corpus.
        draws: random circuits at each threshold.
        seed: of the random circuits.
    """
    whole, random = circuit_of(subject.graph), np.random.default_rng(seed)
    logits = subject.recording.logits_before_cap[-1:]
    clean = float(subject.aim.lead(logits))
    chosen = [circuit_of(subject.graph.prune(nodes, EDGES)) for nodes in THRESHOLDS]
    nothing = Circuit(frozenset(), frozenset())
    circuits = [nothing]
    for one in chosen:
        others = [one.drawn(whole, random) for _ in range(draws)]
        circuits += [one, one.silent_left(whole), one.without_errors(), one.complement(whole)]
        circuits += others
    kept = leads(subject, means, circuits) / clean
    curve = []
    for index, (nodes, one) in enumerate(zip(THRESHOLDS, chosen, strict=True)):
        mine = kept[1 + index * (4 + draws) :][: 4 + draws]
        curve.append(
            {
                "nodes": nodes,
                "features": len(one.features),
                "errors": len(one.errors),
                "circuit": float(mine[0]),
                "silent_left": float(mine[1]),
                "without_errors": float(mine[2]),
                "rest": float(mine[3]),
                "random": float(mine[4:].mean()) if draws else float("nan"),
            }
        )
    at = THRESHOLDS.index(DEFAULT)
    return Faithfulness(clean, curve, float(kept[0]), _minimal(subject, means, chosen[at], clean))


def _minimal(subject: Subject, means: Means, circuit: Circuit, clean: float) -> float | None:
    """Share of the nodes whose removal moves the lead by MATTERS of the clean one."""
    smaller = [Circuit(circuit.features - {one}, circuit.errors) for one in circuit.features]
    smaller += [Circuit(circuit.features, circuit.errors - {one}) for one in circuit.errors]
    if not smaller:
        return None
    found = leads(subject, means, [circuit, *smaller]) / clean
    return float((np.abs(found[1:] - found[0]) >= MATTERS).mean())
