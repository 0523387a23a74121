"""Attacks on everything that tracer reads, by class; `benchmarks.faults` runs them."""
