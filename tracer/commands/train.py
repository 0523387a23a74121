"""`tracer train`: a dictionary for a model, from a configuration."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

import tracer
from tracer.commands.group import Failure, Interrupted
from tracer.commands.options import EXISTING, examples, output
from tracer.commands.progress import progress
from tracer.commands.say import say, say_table

if TYPE_CHECKING:
    from replacement_models.training.config import TrainConfig
    from replacement_models.training.train import Run

KNOWN = ("divergence", "agreement", "replacement_score", "completeness_score")


@click.command(
    epilog=examples(
        "tracer train --template > my.yaml",
        "tracer train my.yaml -o runs/first --set dictionary.l0=8",
    )
)
@click.argument("config", type=EXISTING, required=False)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Another value for a field, as in dictionary.features=2048.",
    show_default="none",
)
@click.option(
    "--template",
    is_flag=True,
    help="Print a configuration with every field and stop.",
    show_default="no",
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    default=1,
    help="Processes that train together here; several machines need torchrun.",
)
@output("Folder of the run.", show_default="the configuration's")
def train(
    config: Path | None, changes: tuple[str, ...], template: bool, ranks: int, output: Path | None
) -> None:
    """Train a dictionary as CONFIG, a YAML file, says.

    Interrupted or killed, it goes on where it was when it is called again.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # where a rank is lost, one line is said
    from replacement_models.training import config_file

    if template:
        for line in config_file.template().splitlines():
            say(line)
        return
    if config is None:
        raise click.UsageError(
            "CONFIG is missing; --template prints one to begin with", click.get_current_context()
        )
    asked = dict(map(_change, changes))
    if output is not None:
        asked["output"] = str(output)
    wanted = _wanted(config, asked)
    if ranks > 1:
        changed = [part for name, value in asked.items() for part in ("--set", f"{name}={value}")]
        _together(ranks, wanted, [str(config), *changed])
        return
    run = _trained(wanted)
    if run is not None:
        print_run(run)


def _wanted(config: Path, changes: Mapping[str, str]) -> "TrainConfig":
    """What CONFIG says, changed; of several ranks the first one says what is wrong with it."""
    from replacement_models.errors import ModelError
    from replacement_models.training import config_file

    try:
        return config_file.with_changes(config_file.read_config(config), dict(changes))
    except ModelError as error:
        from replacement_models.training.torchrun import number

        if number():
            raise SystemExit(Failure.exit_code) from error
        raise


def _trained(wanted: "TrainConfig") -> "Run | None":
    """The run, once it is finished; of several ranks the first one's."""
    from replacement_models.process import quiet_transformers
    from replacement_models.training.torchrun import SaidElsewhereError, number

    try:
        shown = nullcontext(_unseen) if number() else progress("Training")
        with shown as advance, quiet_transformers():
            run = tracer.train(
                wanted, progress=lambda words, done, total: advance(done, total or None, words)
            )
    except SaidElsewhereError as error:
        raise SystemExit(Failure.exit_code) from error
    except KeyboardInterrupt as error:
        if number():
            raise SystemExit(Interrupted.exit_code) from error
        raise Interrupted(f"interrupted; the same command goes on with {wanted.output}") from error
    return None if number() else run


def _unseen(done: int, total: int | None, words: str | None = None) -> None:
    """What other ranks than the first one show."""


def _together(ranks: int, wanted: "TrainConfig", arguments: list[str]) -> None:
    """Start ranks here, which print what one process would."""
    from replacement_models.training.ranks import shards_of
    from replacement_models.training.torchrun import how_to_go_on
    from tracer.training.launch import launch

    shards_of(wanted, ranks)
    code = launch(ranks, ["train", *arguments], how_to_go_on(wanted))
    if code:
        raise SystemExit(code)


def print_run(run: "Run") -> None:
    """What the dictionary is worth, and where it is."""
    worth, wanted = run.worth, run.summary["wanted_l0"]
    columns = ["layer", "error", "weighted", "affine alone", "L0 wanted", "L0", "dead"]
    shown = zip(
        *(run.summary["layers"], worth.error, worth.error_weighted, worth.affine),
        *(wanted, worth.l0, worth.dead),
        strict=True,
    )
    rows = [[layer, *(f"{value:.4g}" for value in values)] for layer, *values in shown]
    if run.config.run.drop_below:
        columns.append("left out")
        rows = [[*row, count] for row, count in zip(rows, run.summary["left_out"], strict=True)]
    say_table(columns, rows)
    before = run.summary.get("before_divergence")
    for words, found in (("before the end-to-end stage", before), ("", run.summary["replaced"])):
        if found:
            say(_scores(found), *([words] if words else []))
    dictionary = str(run.transcoder)
    say(f"Saved {dictionary}. Its curves: {run.folder / 'curves.svg'}")


def _scores(found: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {found[name]:.4g}" for name in KNOWN if name in found
    )


def _change(text: str) -> tuple[str, str]:
    """Read `section.field=value`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(
            f"--set {text!r} is not FIELD=VALUE, as in dictionary.l0=8", click.get_current_context()
        )
    return name.strip(), value
