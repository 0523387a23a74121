"""Superposition (Elhage et al. 2022, "Toy Models of Superposition"), and finding it out again.

Five sparse features are squeezed through two dimensions and back, `ReLU(x W W^T + b)`. Trained, the
model lays them out as a pentagon; an autoencoder that sees the two hidden numbers only finds the
five directions. Prints both and draws them: `python examples/training/superposition.py [FILE.svg]`.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from replacement_models.training.arrays import train_on
from replacement_models.training.config import TrainConfig

FEATURES, HIDDEN, PRESENT, STEPS, BATCH = 5, 2, 0.05, 2000, 512
SOUGHT = 10
"""Features of the autoencoder, which is not told how many there are."""
COLOURS = ("#1f5fa8", "#c2571a")
SIZE = 320


def draws(count: int, generator: torch.Generator) -> Tensor:
    """(count, FEATURES): each feature is there in a share PRESENT of the draws, from 0 to 1."""
    there = torch.rand(count, FEATURES, generator=generator) < PRESENT
    return torch.rand(count, FEATURES, generator=generator) * there


def toy_model(generator: torch.Generator) -> Tensor:
    """W (FEATURES, HIDDEN) of a trained model."""
    weight = (0.5 * torch.randn(FEATURES, HIDDEN, generator=generator)).requires_grad_()
    bias = torch.zeros(FEATURES, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=1e-2)
    for step in range(STEPS):
        x = draws(BATCH, generator)
        loss = (x - torch.relu(x @ weight @ weight.T + bias)).square().mean()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / STEPS)
        optimiser.step()
        optimiser.zero_grad()
    return weight.detach()


def found_directions(weight: Tensor, generator: torch.Generator) -> Tensor:
    """(SOUGHT, HIDDEN): decoder rows of an autoencoder of what the model's hidden layer holds."""
    x = draws(200_000, generator)
    x = x[(x > 0).any(1)]
    config = TrainConfig.of(
        {
            "dictionary": {"kind": "sae", "features": SOUGHT, "l0": 1.1},
            "start": {"tokens": 4096},
            "optimiser": {"rate": 5e-3},
            "loss": {"dead_after": 2000, "revive_every": 20},
            "data": {"buffer": 8192},
            "run": {"tokens": 60_000, "batch": 256},
        }
    )
    layer = train_on(config, x @ weight).transcoder.layers[0]
    return layer.decoder.rows(torch.arange(SOUGHT))[:, 0]


def recovery(weight: Tensor, found: Tensor) -> Tensor:
    """(FEATURES,): cosine of each feature's direction with the nearest one that was found."""
    true, got = (rows / rows.norm(dim=1, keepdim=True) for rows in (weight, found))
    return (true @ got.T).amax(1)


def picture(weight: Tensor, found: Tensor) -> str:
    """Directions as SVG: the model's as lines, those found as dots."""

    def at(row: Tensor) -> tuple[float, float]:
        x, y = (0.42 * SIZE * row / row.norm()).tolist()
        return SIZE / 2 + x, SIZE / 2 - y

    lines = [
        f'<line x1="{SIZE / 2}" y1="{SIZE / 2}" x2="{x:.1f}" y2="{y:.1f}" stroke="{COLOURS[0]}"/>'
        for x, y in map(at, weight)
    ]
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[1]}"/>' for x, y in map(at, found)
    ]
    size = f'width="{SIZE}" height="{SIZE}"'
    body = "".join(lines + dots)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>\n'


def main() -> None:
    """Train both, compare, draw."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = toy_model(generator)
    found = found_directions(weight, generator)
    angles = torch.atan2(weight[:, 1], weight[:, 0]).rad2deg().sort().values
    print("lengths of the features", [round(value, 2) for value in weight.norm(dim=1).tolist()])
    gaps = torch.cat((angles, angles[:1] + 360)).diff()
    print("degrees between neighbours", [round(value) for value in gaps.tolist()])
    print("cosine found", [round(value, 3) for value in recovery(weight, found).tolist()])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(weight, found), encoding="utf-8")


if __name__ == "__main__":
    main()
