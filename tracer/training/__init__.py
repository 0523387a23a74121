"""Train dictionaries, scored by the graphs they give, with their learning curves drawn."""
