"""The dictionary that an unfinished run has reached: `reached.py RUN FOLDER`.

From the run's newest checkpoint, thresholds as they stand: L0 is met exactly only at a run's end.
"""

import json
import sys
from pathlib import Path

import torch

from replacement_models import ReplacementModel, save_transcoder
from replacement_models.training import checkpoint
from replacement_models.training.config import TrainConfig
from replacement_models.training.fold import folded
from replacement_models.training.loop import CHECKPOINTS
from replacement_models.training.scales import Scale
from replacement_models.training.train import CONFIG
from replacement_models.training.trainee import Trainee
from replacement_models.training.wiring import Wiring


def main(run: Path, folder: Path) -> None:
    """Load the checkpoint and save what it holds as a dictionary."""
    config = TrainConfig.of(json.loads((run / CONFIG).read_text(encoding="utf-8")))
    model = ReplacementModel.without_dictionary(config.model)
    wiring = Wiring.of(config.dictionary, len(model.host.blocks))
    width = torch.zeros(model.host.d_model)
    scales = [
        [Scale(width.clone(), torch.zeros(()), torch.zeros(())) for _ in wiring.layers]
        for _ in range(2)
    ]
    trainee = Trainee(config, wiring, *scales)
    path = checkpoint.newest(run / CHECKPOINTS)
    if path is None:
        raise SystemExit(f"{run}: has no checkpoint yet")
    tensors = {f"weights.{name}": value for name, value in trainee.state_dict().items()}
    tensors |= {f"scales.{name}": value for name, value in trainee.scales().items()}
    checkpoint.load(path, tensors)
    with torch.no_grad():
        save_transcoder(folded(trainee, len(model.host.blocks), model.name), folder)
    print(f"{folder}: after {checkpoint.read_state(path)['step']} of {config.steps} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
