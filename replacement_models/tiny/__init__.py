"""The embedded default: a small language model, its transcoders, and the recipe that made them."""
