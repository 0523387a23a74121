"""Many graphs: kept as one dataset, compared, and taken together."""
