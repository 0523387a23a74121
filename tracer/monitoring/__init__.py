"""Watching features, groups and directions over texts, and searching for texts that drive them."""
