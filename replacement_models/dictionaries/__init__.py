"""Kinds of dictionaries, and what their features do to a pre-activation."""
