"""Export a graph to networkx and find its bottlenecks: what all paths to the answer run through.

    python examples/bottlenecks.py ["PROMPT"]

Edges are weighted by influence. The flow that a node must let through is what is lost from tokens
and errors to the answer when the node is taken out of the graph: a statement about the graph, to be
tested by intervening on the model (prove_it.ipynb).
"""

import sys

import networkx as nx

import tracer
from tracer import ReplacementModel

PROMPT = "The capital of the state containing Dallas is"


def flow(graph: "nx.DiGraph[str]", answers: list[str]) -> float:
    """What runs from roots to the answers, edges holding as much as their influence."""
    network = nx.DiGraph(graph)
    roots = [name for name, kind in graph.nodes(data="kind") if kind in ("embedding", "error")]
    network.add_edges_from(("roots", root) for root in roots)  # no capacity: endless
    network.add_edges_from((answer, "answer") for answer in answers)
    return float(nx.maximum_flow_value(network, "roots", "answer", capacity="influence"))


def bottlenecks(graph: "nx.DiGraph[str]") -> list[tuple[float, str]]:
    """Share of the flow that every feature must let through, largest first."""
    answers = [name for name, kind in graph.nodes(data="kind") if kind == "logit"]
    whole = flow(graph, answers)
    features = [name for name, kind in graph.nodes(data="kind") if kind == "feature"]
    found = []
    for name in features:
        without = graph.copy()
        without.remove_node(name)
        found.append((1 - flow(without, answers) / whole, name))
    return sorted(found, reverse=True)


def main() -> None:
    """Print the ten narrowest places."""
    prompt = sys.argv[1] if len(sys.argv) > 1 else PROMPT
    graph = tracer.trace(ReplacementModel.load(), prompt).prune(nodes=0.8, edges=0.98)
    network = graph.to_networkx()
    print("flow lost without it   node")
    for share, name in bottlenecks(network)[:10]:
        print(f"{share:20.1%}   {name:10} {network.nodes[name]['label']}")


if __name__ == "__main__":
    main()
