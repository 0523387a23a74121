"""The one exception of this package."""


class TraceError(ValueError):
    """A trace or an intervention cannot be done as asked."""
