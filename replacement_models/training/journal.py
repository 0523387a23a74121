"""What a run writes down as it goes: a line of JSON, and whatever else was asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replacement_models.errors import ModelError
from replacement_models.training.config import TrainConfig

FILE = "log.jsonl"


class Journal:
    """Lines of log.jsonl, and the same numbers to TensorBoard and Weights & Biases."""

    def __init__(self, folder: Path, config: TrainConfig, step: int) -> None:
        """Open the log, less what a killed run wrote after the checkpoint it goes on from.

        Args:
            folder: of the run.
            config: says what else is written.
            step: steps done.

        Raises:
            ModelError: TensorBoard or wandb is asked for and not installed.
        """
        self.path = folder / FILE
        kept = [line for line in entries(self.path) if line.get("step", 0) <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path)
        self._board = _tensorboard(folder) if config.run.tensorboard else None
        self._wandb = _wandb(folder, config) if config.run.wandb else None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, line["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=line["step"])

    def close(self) -> None:
        """Let both finish."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def entries(path: Path) -> list[dict[str, Any]]:
    """Lines of a log, a torn last one left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def check_loggers(config: TrainConfig) -> None:
    """Refuse loggers that are not installed, before anything is loaded.

    Raises:
        ModelError: one is asked for and missing.
    """
    from importlib.util import find_spec

    for name, wanted in (("tensorboard", config.run.tensorboard), ("wandb", config.run.wandb)):
        if wanted and find_spec(name) is None:
            raise ModelError(f"run.{name}: the package is not installed: pip install {name}")


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


def _wandb(folder: Path, config: TrainConfig) -> Any:
    import wandb  # type: ignore[import-not-found]

    return wandb.init(
        project=config.run.wandb, name=folder.name, dir=str(folder), config=config.as_mapping()
    )
