"""What several commands take: types, parsers, arguments and options."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.lean import lean_process

if TYPE_CHECKING:
    from tracer import Intervention, Steering

Command = Callable[..., Any]

FEATURE_VALUE = re.compile(r"(\d{1,9})/(-?\d{1,9}|(-?\d{1,9})?:(-?\d{1,9})?)/(\d{1,9})=(.+)")


def token_ids(value: str) -> list[int]:
    """Read `1,7,12` as [1, 7, 12]."""
    if not re.fullmatch(r" *\d{1,9} *(, *\d{1,9} *)*", value):
        raise click.BadParameter(f"{value!r} is not a list of token ids such as 1,7,12")
    return [int(number) for number in value.split(",")]


def feature_value(value: str) -> tuple[int, int | slice, int, float]:
    """Read `2/-1/311=0` or `2/3:6/311=0` as (layer, position or slice, feature, number)."""
    parts = FEATURE_VALUE.fullmatch(value)
    number = float_or_nan(parts[6]) if parts else math.nan
    if parts is None or not math.isfinite(number):
        raise click.BadParameter(f"{value!r} is not L/P/F=X, as in 2/-1/311=0 or 2/3:6/311=0")
    if ":" in parts[2]:
        first, end = (int(part) if part else None for part in (parts[3], parts[4]))
        return int(parts[1]), slice(first, end), int(parts[5]), number
    return int(parts[1]), int(parts[2]), int(parts[5]), number


def layer_range(value: str) -> range:
    """Read `1:3` as range(1, 3)."""
    parts = re.fullmatch(r"(\d{1,9}):(\d{1,9})", value)
    if parts is None:
        raise click.BadParameter(f"{value!r} is not A:B, as in 1:3")
    return range(int(parts[1]), int(parts[2]))


def device_map(value: str) -> str | dict[str, int | str]:
    """Read `auto` as it stands, and a .json file as its map of modules to devices."""
    if not value.endswith(".json"):
        return value
    try:
        found = json.loads(Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise click.BadParameter(f"{value} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value} holds no map of modules to devices")
    return found


def float_or_nan(text: str) -> float:
    """Read a number; not a number where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def together(*options: Command) -> Command:
    """Join options that several commands share; the first stands first in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


MOST = 2**31 - 1
POSITIVE, COUNT = click.IntRange(1, MOST), click.IntRange(0, MOST)
SHARE = click.FloatRange(0, 1, min_open=True)
EXISTING = click.Path(path_type=Path)

folder = click.argument("folder", type=EXISTING)
of_dataset = click.option(
    "--prompt",
    "number",
    type=COUNT,
    metavar="N",
    help="Take the graph of prompt N where FOLDER is a dataset of graphs.",
    show_default="FOLDER is a graph",
)
prompt_options = together(
    click.argument("prompt", required=False),
    click.option("--tokens", type=token_ids, metavar="IDS", help="Token ids instead: 1,7,12."),
)
model_options = together(
    click.option("--model", "name", metavar="M", help="Folder or hub id.", show_default="embedded"),
    click.option(
        "--transcoders",
        metavar="T",
        help="Folder, hub id, or neurons: the model's own.",
        show_default="embedded",
    ),
    click.option(
        "--elsewhere",
        type=click.Choice(["error", "neurons"]),
        help="What stands at layers without a dictionary.",
        show_default="refuse to guess",
    ),
    click.option(
        "--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), default="float32"
    ),
    click.option("--device", default="cpu", help="cpu, cuda, cuda:1, ..."),
    click.option(
        "--device-map",
        type=device_map,
        metavar="WAY",
        help="Spread layers over several devices: auto, balanced, sequential, or a .json map.",
        show_default="one device",
    ),
)
prune_options = together(
    click.option("--nodes", type=SHARE, default=0.8, help="Share of the node influence to keep."),
    click.option("--edges", type=SHARE, default=0.98, help="Share of the edge influence to keep."),
)

attention_option = click.option(
    "--keep-attention/--edges-alone",
    default=None,
    help="Keep what steers the attention of the edges kept, or what edges alone would keep.",
    show_default="as the graph was traced, or pruned",
)


def output(help: str, **settings: Any) -> Command:
    """Make the -o option of a command."""
    path = click.Path(path_type=Path)
    return click.option("-o", "--output", type=path, help=help, **settings)


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print everything found as JSON instead.",
    show_default="in words",
)


def examples(*lines: str) -> str:
    """Commands to show at the end of a help text."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def change(flag: str, field: str, help: str) -> Command:
    """Make an option that fills a field of `tracer.Intervention`."""
    return click.option(
        flag, field, metavar="L/P/F=X", multiple=True, help=help, callback=_features_or_groups
    )


def _features_or_groups(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[Any]:
    """Read each as a feature's value or, where --groups is given, as `NAME=X` of a group."""
    named = context.params.get("groups") is not None
    return [
        group_value(value) if named and not FEATURE_VALUE.fullmatch(value) else feature_value(value)
        for value in values
    ]


def group_value(value: str) -> tuple[str, float]:
    """Read `say a capital=0` as ("say a capital", 0.0)."""
    name, _, text = value.rpartition("=")
    number = float_or_nan(text)
    if not name or not math.isfinite(number):
        raise click.BadParameter(f"{value!r} is neither L/P/F=X nor NAME=X of a group in --groups")
    return name, number


change_options = together(
    change("--set", "value", "Set feature F of layer L at position P to X."),
    change("--scale", "scale", "Multiply it by X."),
    change("--add", "add", "Add X to it."),
    click.option(
        "--groups",
        type=EXISTING,
        metavar="FOLDER",
        is_eager=True,
        help="Graph whose groups the three may name instead: NAME=X.",
        show_default="none",
    ),
)

CHANGES = {"value": "set", "scale": "scaled", "add": "added"}
"""Field of an intervention -> what a group does with it."""


def changes_of(options: dict[str, Any]) -> "list[Intervention]":
    """Take --set, --scale, --add and --groups out of `options`."""
    lean_process()
    folder = options.pop("groups")
    graph = None if folder is None else tracer.AttributionGraph.load(folder)
    found: list[Intervention] = []
    for field, method in CHANGES.items():
        for *place, number in options.pop(field):
            if len(place) == 1:
                assert graph is not None
                found += getattr(tracer.Supernode.of(graph, place[0]), method)(number)
            else:
                names = ("layer", "position", "feature")
                where = dict(zip(names, place, strict=True))
                found.append(tracer.Intervention(**where, **{field: number}))
    return found


def strength(value: str) -> tuple[str, float]:
    """Read `cold.safetensors=2` as ("cold.safetensors", 2.0)."""
    path, _, text = value.rpartition("=")
    number = float_or_nan(text)
    if not path or not math.isfinite(number):
        raise click.BadParameter(f"{value!r} is not FILE=SCALE, as in cold.safetensors=2")
    return path, number


def span(value: str) -> int | slice:
    """Read `-1` as -1, `2:5` as slice(2, 5), `2:` as slice(2, None)."""
    parts = re.fullmatch(r"(-?\d{1,9})|(-?\d{1,9})?:(-?\d{1,9})?", value)
    if parts is None:
        raise click.BadParameter(f"{value!r} is not a position or A:B, as in -1 or 2:5")
    if parts[1]:
        return int(parts[1])
    return slice(*(int(part) if part else None for part in (parts[2], parts[3])))


steer_options = together(
    click.option(
        "--steer",
        type=strength,
        metavar="FILE=SCALE",
        multiple=True,
        help="Add a saved direction times SCALE; FILE:LABEL is one of several in a file.",
        show_default="none",
    ),
    click.option(
        "--remove",
        metavar="FILE",
        multiple=True,
        help="Project the saved directions out of the stream.",
        show_default="none",
    ),
    click.option(
        "--at",
        type=span,
        metavar="P",
        help="Where to --steer and --remove: a position or A:B.",
        show_default="everywhere",
    ),
)


def steering_of(options: dict[str, Any]) -> "list[Steering]":
    """Take --steer, --remove and --at out of `options` and read the files they name."""
    lean_process()
    added, removed, at = (options.pop(name) for name in ("steer", "remove", "at"))
    found = [tracer.Directions.load(path).steering(scale, at) for path, scale in added]
    return found + [tracer.Directions.load(path).removal(position=at) for path in removed]


def only_one(prompt: str | None, tokens: list[int] | None) -> str | list[int]:
    """Take the text or the token ids, whichever was given."""
    if prompt is not None and tokens is None:
        return prompt
    if tokens is not None and prompt is None:
        return tokens
    got = "neither" if prompt is None else "both"
    raise click.UsageError(f"expected PROMPT or --tokens, got {got}", click.get_current_context())
