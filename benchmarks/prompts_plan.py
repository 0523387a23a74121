"""What a hundred thousand prompts take, on paper: `python -m benchmarks.prompts_plan`.

Graphs of 100,000 prompts of 64 tokens on Gemma-2-2B with per-layer transcoders, on one H200 and on
16. Nothing is run: operations, bytes and seconds that benchmarks here counted and measured are
scaled to those shapes, and the card's rates are the maker's times `REACHED`, which is a guess.
"""

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.output import RESULTS

PROMPTS, POSITIONS, ROWS, CARDS = 100_000, 64, 1000, 16
LAYERS, WIDTH, MODEL, TARGETS = 26, 2304, 2.6e9, 10
FEATURES, ACTIVE = 16_384, 50
"""Features of a layer, and how many of them fire at a position."""
PRODUCTS = {"float32": 67e12, "TF32": 494e12}
"""An H200's operations a second, as published: on its cores, and dense on its tensor cores."""
REACHED = 0.4
"""Share of them taken for reached; on a CPU the sweep reaches what `Measured.of_peak` says."""


@dataclass(frozen=True)
class Measured:
    """What the committed results say."""

    layers: int
    positions: int
    rows: int
    active: int
    sweep: float
    """Operations of attention and joins in the sweep of a graph of these sizes."""
    scores: float
    """Operations of its scores."""
    of_peak: float
    prune: float
    """CPU seconds an edge: pruning, influence included."""
    write: float
    """CPU seconds an edge: saving."""
    node: float
    """Bytes a node of Parquet, and the same below of an edge and of a prompt's row."""
    edge: float
    prompt: float
    kept: tuple[float, float]
    """Share of the nodes and of the edges traced that pruning keeps on a real model."""
    two_over_one: float
    """Rate of two workers of Ray over that of one."""

    @classmethod
    def read(cls) -> "Measured":
        """From attribution.json (Gemma's shape), graph_size.json and many_prompts.json."""
        case = next(
            one
            for one in read("attribution")["results"]
            if (one["shape"], one["kind"]) == ("gemma", "per_layer")
        )
        stages, size, many = case["ours"]["stages"], read("graph_size"), read("many_prompts")
        real, seconds = many["real"], size["seconds"]
        return cls(
            layers=case["layers"], positions=case["positions"], rows=case["cap"],
            active=case["active_features"],
            sweep=1e9 * (stages["gflop"]["attention"] + stages["gflop"]["join"]),
            scores=1e9 * stages["gflop"]["scores of writers"],
            of_peak=stages["of_peak"]["sweep"],
            prune=seconds["prune, influence included"]["cpu"] / size["edges"],
            write=seconds["save"]["cpu"] / size["edges"],
            node=real["bytes a node"], edge=real["bytes an edge"], prompt=real["bytes a prompt"],
            kept=(real["nodes a graph"] / real["nodes traced a graph"],
                  real["edges a graph"] / real["edges traced a graph"]),
            two_over_one=many["ray"]["two over one from the first shard on"],
        )  # fmt: skip


def read(name: str) -> dict[str, Any]:
    """Results of a benchmark, as committed."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


@dataclass(frozen=True)
class Plan:
    """A graph in operations, seconds and bytes."""

    measured: Measured

    @property
    def operations(self) -> dict[str, float]:
        """Floating-point operations of a graph by what they are for."""
        known, rows = self.measured, ROWS + TARGETS
        more = rows / (known.rows + TARGETS)
        visited = more * (LAYERS / known.layers) * (POSITIONS / known.positions)
        active = ACTIVE * LAYERS * (POSITIONS - 1)
        return {
            "model, one pass": 2 * MODEL * POSITIONS,
            "encoders": 2.0 * POSITIONS * FEATURES * WIDTH * LAYERS,
            "sweep: attention": known.sweep * visited,
            "sweep: scores": known.scores * more * active / known.active,
        }

    @property
    def nodes(self) -> int:
        """Features, errors, tokens and answers of a graph before pruning."""
        return ROWS + LAYERS * (POSITIONS - 1) + POSITIONS + TARGETS

    @property
    def edges(self) -> float:
        """Of a graph before pruning: a row meets half of the sources in the mean."""
        return (ROWS + TARGETS) * self.nodes / 2

    @property
    def host(self) -> float:
        """CPU seconds of pruning and of writing a graph, after the card has done its part."""
        return self.edges * (self.measured.prune + self.measured.kept[1] * self.measured.write)

    @property
    def bytes(self) -> float:
        """Of Parquet a graph, pruned."""
        nodes, edges = (
            share * all_of
            for share, all_of in zip(self.measured.kept, (self.nodes, self.edges), strict=True)
        )
        return nodes * self.measured.node + edges * self.measured.edge + self.measured.prompt

    def card(self, rate: float) -> float:
        """Seconds of a graph on a card."""
        return sum(self.operations.values()) / (rate * REACHED)

    def hours(self, rate: float, cards: int = 1) -> float:
        """Of all prompts, cards and hosts one after the other."""
        lost = 1.0 if cards == 1 else 2 / self.measured.two_over_one
        return PROMPTS * (self.card(rate) + self.host) * lost / cards / 3600


def lines() -> list[str]:
    """The page's figures, as Markdown."""
    known = Measured.read()
    plan = Plan(known)
    found = ["| a graph | |", "|---|---|"]
    found += [
        f"| {name} | {count / 1e12:.2f} · 10¹² operations |"
        for name, count in plan.operations.items()
    ]
    found += [
        f"| nodes, edges before pruning | {plan.nodes:,}, {plan.edges / 1e6:.1f} million |",
        f"| pruning and writing | {plan.host:.2f} CPU seconds |",
        f"| Parquet | {plan.bytes / 1024:.0f} KiB |",
        "",
        f"| {PROMPTS:,} prompts | {' | '.join(PRODUCTS)} |",
        "|---|---|---|",
    ]
    rates = PRODUCTS.values()
    found += [
        row("card hours at the products", (PROMPTS * plan.card(rate) / 3600 for rate in rates)),
        row("hours of one CPU core beside it", (PROMPTS * plan.host / 3600 for _ in rates)),
        row("hours on one H200", (plan.hours(rate) for rate in rates)),
        row(f"hours on {CARDS}", (plan.hours(rate, CARDS) for rate in rates)),
        row("card hours paid on one", (plan.hours(rate) for rate in rates)),
        row(f"card hours paid on {CARDS}", (CARDS * plan.hours(rate, CARDS) for rate in rates)),
        row("disk, GB", (PROMPTS * plan.bytes / 1e9 for _ in rates)),
    ]
    return found


def row(name: str, values: Any) -> str:
    """A line of the second table."""
    return f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |"


if __name__ == "__main__":
    print("\n".join(lines()))
