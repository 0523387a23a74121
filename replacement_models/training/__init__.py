"""Train dictionaries: autoencoders, per-layer and cross-layer transcoders, in one loop."""
