"""Another checkout of this project, which a benchmark runs in turns with this one."""

import subprocess
from argparse import ArgumentTypeError
from pathlib import Path


def checkout(name: str) -> Path:
    """A folder that holds a checkout, as a type for argparse.

    Raises:
        ArgumentTypeError: it holds no command line of this project.
    """
    path = Path(name).resolve()
    if not (path / "cli.py").is_file() or not (path / "tracer").is_dir():
        raise ArgumentTypeError(f"{name} is no checkout, expected a folder with cli.py and tracer/")
    return path


def revision(path: Path) -> str:
    """The commit that a checkout stands at; its folder's name where git does not say."""
    call = ["git", "-C", str(path), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(call, capture_output=True, text=True, check=False)
    return found.stdout.strip() or path.name
