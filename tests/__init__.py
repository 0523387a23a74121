"""The tests: a package, since other distributions install one of this name."""
