"""What a compiled program's circuit is on a prompt, from the compiler's labels and RASP's values.

A node is a variable at a position. Tokens are nodes, and so is every variable that an MLP computes;
what a head moves is none, as in a graph: edges lead through it, from where its selector looks.
Positions, and the constant `one` that stands at each, are constants of a graph and no nodes. A
variable is written where it has a value that is not None, and not 0 where it is numerical: RASP's
zero is nothing on the residual stream. A sum of two is written where either is, though they may
cancel.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parent / "models"
TOKENS, OUTPUT = "tokens", "output"
Node = tuple[str, int]
"""A variable and a position of the model, 0 being BOS."""
Edge = tuple[Node, Node]
"""Source, target."""


@dataclass(frozen=True)
class Circuit:
    """What the output at one position comes from."""

    nodes: frozenset[Node]
    """Without the output."""
    edges: frozenset[Edge]

    @property
    def features(self) -> frozenset[Node]:
        """Nodes that an MLP computes."""
        return frozenset(node for node in self.nodes if node[0] != TOKENS)


@dataclass(frozen=True)
class Program:
    """A compiled program, as `compile.py` wrote it."""

    folder: Path

    @cached_property
    def known(self) -> dict[str, Any]:
        """Its labels and values."""
        found: dict[str, Any] = json.loads((self.folder / "program.json").read_text("utf-8"))
        return found

    @property
    def name(self) -> str:
        """The program's."""
        return self.folder.name

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """Token ids, and values without BOS."""
        found: list[dict[str, Any]] = self.known["prompts"]
        return found

    def of_dimension(self, label: str) -> str:
        """The variable that a residual dimension, or what a neuron is called, belongs to."""
        known = [
            name
            for name in self.known["variables"]
            if label.removeprefix("_hidden_").startswith(name)
        ]
        return max(known, key=len, default=label)

    def neuron(self, layer: int, feature: int) -> str:
        """The variable that a neuron computes."""
        names = self.known["layers"][layer]["neurons"]
        return self.of_dimension(names[feature])

    def layer_of(self, variable: str) -> int:
        """The layer whose MLP computes a variable; -1 for tokens."""
        for layer, part in enumerate(self.known["layers"]):
            if variable in {self.of_dimension(name) for name in part["neurons"]}:
                return layer
        return -1

    def target(self, prompt: dict[str, Any]) -> tuple[int, int] | None:
        """The last position of the model with an output, and the output's token id."""
        values = prompt["values"][self.known["output"]]
        outputs, first = self.known["outputs"], len(self.known["tokens"])
        for position in range(len(values), 1, -1):
            if self.written(self.known["output"], position, prompt):
                single = outputs[0][1] is None and len(outputs) == 1
                at = 0 if single else [value for _, value in outputs].index(values[position - 1])
                return position, first + at
        return None

    def written(self, variable: str, position: int, prompt: dict[str, Any]) -> bool:
        """Whether a variable stands on the stream."""
        if variable == TOKENS:
            return True
        if position == 0:
            return False
        known = self.known["variables"][variable]
        if known["kind"] == "LinearSequenceMap":
            return any(self.written(part, position, prompt) for part in known["inputs"])
        value = prompt["values"][variable][position - 1]
        return value is not None and not (known["numerical"] and float(value) == 0)

    def sources(self, node: Node, prompt: dict[str, Any]) -> Iterator[Node]:
        """What is read to compute a variable: tokens and what MLPs computed, through heads."""
        variable, position = node
        known = self.known["variables"][variable]
        for dimension in known.get("mlp_reads", ()):
            read = self.of_dimension(dimension)
            if dimension == "one":
                continue
            if dimension.endswith("_selector_width_attn_output"):
                yield TOKENS, 0  # a head that looks at BOS and what is selected reads BOS alone
            elif dimension != "tokens:bos" or known["kind"] != "SelectorWidth":
                yield from self.held(read, position, prompt)

    def held(self, variable: str, position: int, prompt: dict[str, Any]) -> Iterator[Node]:
        """Where a variable on the stream comes from: itself, or what a head moved there."""
        known = self.known["variables"][variable]
        if known["kind"] == "IndicesType" or not self.written(variable, position, prompt):
            return
        if known["kind"] != "Aggregate":
            yield variable, position
            return
        selector, moved = known["inputs"]
        looked = prompt["values"][selector][position - 1]
        for key, selected in enumerate(looked, 1):
            if selected:
                yield from self.held(moved, key, prompt)

    def circuit(self, prompt: dict[str, Any], position: int) -> Circuit:
        """The circuit of the output at a position."""
        edges: set[Edge] = set()
        out = (OUTPUT, position)
        waiting = [(node, out) for node in self.held(self.known["output"], position, prompt)]
        while waiting:
            edge = waiting.pop()
            if edge in edges:
                continue
            edges.add(edge)
            node = edge[0]
            if node[0] != TOKENS:
                waiting += [(source, node) for source in self.sources(node, prompt)]
        return Circuit(frozenset(source for source, _ in edges), frozenset(edges))


def programs(folder: Path = MODELS) -> list[Program]:
    """Every compiled program, by name."""
    return [Program(path.parent) for path in sorted(folder.glob("*/program.json"))]
