"""From the options that name a model to the model."""

from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.lean import lean_loading, lean_process
from tracer.commands.progress import progress
from tracer.commands.say import say

if TYPE_CHECKING:
    from tracer import ReplacementModel


def load_model(options: dict[str, Any]) -> "ReplacementModel":
    """Take `model_options` and --lazy out of `options` and load what they name.

    Raises:
        UsageError: a model without transcoders.
        ModelError: what is named cannot be loaded.
    """
    if options["name"] is not None and options["transcoders"] is None:
        raise click.UsageError(
            f"--model {options['name']} needs --transcoders: the folder or hub id of a set, or "
            "neurons for the model's own",
            click.get_current_context(),
        )
    names = ("name", "transcoders", "device", "dtype", "lazy", "elsewhere", "device_map")
    lean_process()
    with progress("Loading the model"):
        from replacement_models.process import quiet_transformers

        # What is wrong, our own errors say in one line.
        click.get_current_context().with_resource(quiet_transformers())
        named = {name: options.pop(name, None) for name in names}
        model = lean_loading(lambda: tracer.ReplacementModel.load(**named))
    for note in model.notes:
        say(note, err=True)
    return model


def load_dictionary(model: "ReplacementModel", options: dict[str, Any]) -> "ReplacementModel":
    """The same language model with the dictionary that `options` name.

    Raises:
        ModelError: it cannot be loaded, or does not fit.
    """
    with progress("Loading the dictionary"):
        names = ("transcoders", "lazy", "elsewhere")
        return model.with_transcoders(**{name: options[name] for name in names if name in options})
