"""Where a benchmark writes, checked before it measures for minutes."""

from argparse import ArgumentTypeError
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
"""Where benchmarks write unless told otherwise; what is committed was measured."""


def output_file(name: str) -> Path:
    """A file that can be written, as a type for argparse.

    Raises:
        ArgumentTypeError: it is a folder, or stands in none that exists.
    """
    path = Path(name)
    if path.is_dir():
        raise ArgumentTypeError(f"{name} is a folder, expected a file to write")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{name} cannot be written: there is no folder {path.parent}")
    return path
