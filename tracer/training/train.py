"""The verb: train a dictionary, score it by its graphs, draw its curves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from replacement_models import ReplacementModel
from replacement_models.training.config import TrainConfig
from replacement_models.training.config_file import read_config
from replacement_models.training.torchrun import number
from replacement_models.training.train import Run
from replacement_models.training.train import train as train_dictionary
from tracer.attribution.trace import trace
from tracer.training.curves import write_curves

CAP = 1000
"""Features a graph is traced with when it scores a dictionary."""
Progress = Callable[[str, int, int], None]


def train(
    config: TrainConfig | dict[str, Any] | str | Path, *, progress: Progress | None = None
) -> Run:
    """Train a dictionary for a model; called again, an interrupted run goes on.

    Under torchrun every rank calls it, and all train one dictionary.

    Args:
        config: a `TrainConfig`, fields by name, or the path of a YAML file.
        progress: called with words for what is done, and how much of how much.

    Returns:
        The run: its folder, the finished dictionary, and what it is worth on held-out text (errors
        as shares of the variance, active features a token). `curves.svg` is drawn beside them.

    Raises:
        ModelError: a setting is wrong or does not fit, the corpus cannot be read, or the folder
            holds another run.
        KeyboardInterrupt: the run was stopped; the same call goes on with it.
    """
    run = train_dictionary(
        read_config(config), progress or (lambda words, done, total: None), score
    )
    if not number():
        write_curves(run)
    return run


def score(model: ReplacementModel, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Scores of graphs, means over prompts.

    Args:
        model: with its dictionary.
        prompts: token ids.

    Returns:
        Replacement and completeness score, with at most `CAP` features; of a dictionary with a
        linear skip those of the skip alone too, which features have to beat.
    """
    graphs = [trace(model, prompt, max_features=CAP) for prompt in prompts]
    if not graphs:
        return {}
    found = {
        "replacement_score": mean(graph.scores.replacement for graph in graphs),
        "completeness_score": mean(graph.scores.completeness for graph in graphs),
    }
    alone = [graph.metadata.get("skip_alone") for graph in graphs]
    if all(alone):
        found["replacement_score_of_skip"] = mean(one["replacement"] for one in alone if one)
    return found
