"""The engine: from a prompt to its attribution graph, in the order of a trace."""
