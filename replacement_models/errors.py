"""The one exception of this package."""


class ModelError(ValueError):
    """A model, a dictionary or a file that claims to hold one cannot be used as asked."""
