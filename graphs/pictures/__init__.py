"""From a graph to DOT text with every position given, and what Graphviz makes of it."""
