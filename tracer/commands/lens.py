"""`tracer lens`: what every layer would answer, and the fitting of lenses."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.group import Failure
from tracer.commands.models import load_model
from tracer.commands.options import (
    COUNT,
    EXISTING,
    POSITIVE,
    examples,
    model_options,
    only_one,
    output,
    prompt_options,
    together,
)
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_table, quoted

if TYPE_CHECKING:
    from tracer import LensReading

fit_options = together(
    click.option(
        "--fit",
        type=click.Choice(["tuned", "jacobian"]),
        help="Fit such a lens on --corpus and write it to -o, instead of reading PROMPT.",
        show_default="read PROMPT",
    ),
    click.option(
        "--corpus",
        type=EXISTING,
        help="With --fit: text file; blank lines part its texts, without any every line is one.",
        show_default="the embedded model's own, none for others",
    ),
    click.option(
        "--steps",
        type=POSITIVE,
        help="With --fit: batches of text to learn from.",
        show_default="250; of a jacobian lens 4",
    ),
    click.option("--seed", type=COUNT, default=0, help="With --fit: of what is drawn."),
)


@click.command(
    epilog=examples(
        'tracer lens "The capital of the state containing Dallas is" --kind local --token " Texas"',
        "tracer lens --fit tuned --corpus text.txt -o tuned.safetensors",
        'tracer lens "The opposite of hot is" --lens tuned.safetensors -o heat.svg',
    )
)
@prompt_options
@model_options
@click.option(
    "--kind",
    type=click.Choice(["logit", "tuned", "jacobian", "local"]),
    help="How streams are read.",
    show_default="that of --lens, without one logit",
)
@click.option(
    "--lens", type=EXISTING, help="Fitted lens, .safetensors.", show_default="none is needed"
)
@click.option(
    "--token",
    metavar="TOKEN",
    multiple=True,
    help="Follow the rank of this token (mind the space: ' Austin'); may be repeated.",
    show_default="none",
)
@click.option("--position", type=int, default=-1, help="Where the answer is read.")
@click.option("--last", type=POSITIVE, default=8, help="Print so many positions, the last.")
@click.option(
    "--skip-positions",
    type=COUNT,
    default=1,
    help="Leave the first so many positions out of the mean KL.",
)
@fit_options
@output("Heat map to write, .svg; with --fit the lens, .safetensors.", show_default="none")
def lens(prompt: str | None, tokens: list[int] | None, **options: Any) -> None:
    """Print what every layer of the model would answer after PROMPT, and at its positions."""
    fitting = {name: options.pop(name) for name in ("fit", "corpus", "seed", "steps")}
    path: Path | None = options.pop("output")
    if fitting["fit"] is not None:
        fit(prompt or tokens, path, fitting, options)
        return
    text = only_one(prompt, tokens)
    if path is not None and path.suffix != ".svg":
        raise Failure(f"cannot write {path}: expected a suffix of .svg")
    last, options["tokens"] = options.pop("last"), options.pop("token")
    model = load_model(options)
    with progress("Reading the streams"):
        found = tracer.lens(model, text, **options)
    print_layers(found, last)
    print_named(found)
    if path is not None:
        from graphs.exchange.files import writing

        name = found.named["name"][0].as_py() if found.named.num_rows else None
        with writing(path) as partial:
            partial.write_text(found.heat_map(name), encoding="utf-8")
        say(f"Saved {path}")


def fit(prompt: Any, path: Path | None, fitting: dict[str, Any], options: dict[str, Any]) -> None:
    """Fit a lens, save it and print how far it is from the model's answer on text held out."""
    context = click.get_current_context()
    if prompt is not None:
        raise click.UsageError("--fit takes no PROMPT; give its text with --corpus", context)
    if path is None:
        raise click.UsageError("--fit needs -o, the lens to write: .safetensors", context)
    from tracer.lenses.corpus import texts_of
    from tracer.lenses.stored import check_path

    check_path(path, "lens")
    corpus = None if fitting["corpus"] is None else texts_of(fitting["corpus"])
    named = ("name", "transcoders", "device", "dtype", "elsewhere", "device_map")
    model = load_model({name: options[name] for name in named})
    with progress(f"Fitting the {fitting['fit']} lens") as advance:
        made = tracer.fit_lens(
            model,
            corpus,
            fitting["fit"],
            steps=fitting["steps"],
            seed=fitting["seed"],
            progress=advance,
        )
    made.save(path)
    held = made.about["held_out"]
    pairs = [*zip(held["kl"], held["kl_logit"], strict=True)][:-1]  # the last is the answer itself
    rows = [
        (layer, ours, logit, "" if ours < logit else "no better")
        for layer, (ours, logit) in enumerate(pairs)
    ]
    print_table(("layer", f"KL, {made.kind} lens", "KL, logit lens", ""), rows)
    say(f"on {held['tokens']} tokens held out, in nats a token")
    say(f"Saved {path}")


def print_layers(found: "LensReading", last: int) -> None:
    """Print the likeliest token of every layer at the last positions, and the KL."""
    cells = found.table.to_pylist()
    width = len(found.texts)
    shown = range(max(0, width - last), width)
    rows = []
    for row, layer in reversed([*enumerate(found.layers.to_pylist())]):
        here = cells[row * width : (row + 1) * width]
        tops = [f"{quoted(here[at]['top'])} {here[at]['probability']:.2f}" for at in shown]
        rows.append([layer["site"], *tops, f"{layer['kl_answer']:.3f}", f"{layer['kl']:.3f}"])
    names = [quoted(found.texts[at]) for at in shown]
    print_table([f"{found.kind} lens", *names, "KL", "mean KL"], rows)


def print_named(found: "LensReading") -> None:
    """Print how named tokens stand where the answer is read, and where they are overtaken."""
    rows: Sequence[dict[str, Any]] = [
        row for row in found.named.to_pylist() if row["position"] == found.position
    ]
    for way in found.overtaken.to_pylist():
        own = [row for row in reversed(rows) if row["token"] == way["token"]]
        columns = ("site", "rank", "probability", "lead", "leader")
        lines = [
            [quoted(row[name]) if name == "leader" else row[name] for name in columns]
            for row in own
        ]
        print_table((quoted(way["name"]), *columns[1:]), lines)
        say(f"{quoted(way['name'])} {said(way)}")
        say("")


def said(way: dict[str, Any]) -> str:
    """Say in words what became of a token on the way up."""
    if way["leads_from"] is not None:
        return f"leads from {way['leads_from']} to the end"
    best = f"ranks best at {way['best_site']}: {way['best_rank']}"
    if way["ahead_until"] is None:
        return f"{best}; it never stands before the answer"
    if way["overtaken_at"] is None:
        return f"{best}; it stands before the answer to the end"
    return (
        f"{best}; the answer overtakes it at {way['overtaken_at']}, where {quoted(way['by'])} leads"
    )
