"""Ways of products chosen without a clock."""

from pathlib import Path

import pytest
from torch import Tensor

from replacement_models.speed import choices
from replacement_models.speed.choice_file import ChoiceFile
from tracer.attribution import product


def always(monkeypatch: pytest.MonkeyPatch, folder: Path, *wanted: str) -> list[list[str]]:
    """From now on the first of the wanted ways that a class offers is taken, else torch's own.

    Returns:
        The ways on offer each time that a probe would have run, filled as that happens.
    """
    asked: list[list[str]] = []

    def probe(ways: list[str], x: Tensor, weight: Tensor, uses: int) -> str:
        asked.append(ways)
        return next((way for way in wanted if way in ways), "torch")

    file = ChoiceFile(folder / "products.json")
    monkeypatch.setattr(choices, "process", choices.Choices(file, probe))
    return asked


def every_product_earns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of tests are too small to go any way but torch's; from now on they are not."""
    monkeypatch.setattr(product, "EARNS_A_KERNEL", 0)
