"""`tracer evaluate`: what dictionaries are worth."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.group import Failure
from tracer.commands.options import COUNT, EXISTING, POSITIVE, examples, output
from tracer.commands.progress import progress
from tracer.commands.say import say, say_table

if TYPE_CHECKING:
    from tracer import Evaluation

COLUMNS = (
    "layer",
    "error",
    "affine",
    "rest",
    "affine",
    "median",
    "affine",
    "L0",
    "dead",
    "KL alone",
)


@click.command(
    epilog=examples(
        "tracer evaluate -o my.evaluation",
        "tracer evaluate --model M --transcoders narrow --transcoders wide --corpus texts.jsonl "
        "-o my.evaluation",
    )
)
@click.option("--model", "name", metavar="M", help="Folder or hub id.", show_default="embedded")
@click.option(
    "--transcoders",
    metavar="T",
    multiple=True,
    help="Folder, hub id, or neurons: the model's own; may be given several times.",
    show_default="embedded",
)
@click.option(
    "--corpus",
    metavar="FILE|FOLDER|hf:NAME",
    help="Plain text, JSONL or Parquet, or a folder of them; hf:owner/name[:config][@split].",
    show_default="the embedded model's own",
)
@click.option("--field", default="text", help="Key or column that holds the text.")
@click.option(
    "--lines", is_flag=True, help="Every line of plain text is a document.", show_default="no"
)
@click.option(
    "--alone",
    is_flag=True,
    help="Every document begins a row, as a prompt does.",
    show_default="no",
)
@click.option("--max-tokens", type=POSITIVE, default=16_384, help="Read at most so many.")
@click.option(
    "--context", type=POSITIVE, help="Tokens a row.", show_default="256, or what the model reads"
)
@click.option("--batch", type=POSITIVE, default=8, help="Rows a forward pass at most.")
@click.option("--skip-positions", type=COUNT, default=1, help="First positions that do not count.")
@click.option(
    "--alone-tokens",
    type=COUNT,
    default=1024,
    help="Tokens on which MLPs are replaced one at a time; 0 leaves this out.",
)
@click.option(
    "--prompts",
    type=EXISTING,
    metavar="FILE",
    help="Prompts to score graphs on, one a line.",
    show_default="beginnings of rows",
)
@click.option("--prompt-count", type=COUNT, default=4, help="Prompts out of the corpus; 0 none.")
@click.option("--prompt-tokens", type=POSITIVE, default=16, help="Tokens of each of those.")
@click.option("--max-features", type=COUNT, default=1000, help="Features a graph at most.")
@click.option("--capped", type=POSITIVE, default=100, help="The same of a second, small graph.")
@click.option(
    "--swaps",
    type=EXISTING,
    metavar="FILE.json",
    help="Swaps to try: a list of {prompt, other}, positions and answer where known.",
    show_default="the embedded model's own",
)
@click.option("--swap-count", type=COUNT, default=200, help="Swaps of its own; 0 none.")
@click.option(
    "--earlier",
    type=EXISTING,
    metavar="FOLDER",
    multiple=True,
    help="Evaluations that stand in the plot too.",
    show_default="none",
)
@click.option("--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), default="float32")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
@output("Folder for evaluation.json and evaluation.html.", show_default="none")
def evaluate(
    name: str | None,
    transcoders: tuple[str, ...],
    prompts: Path | None,
    dtype: str,
    device: str,
    output: Path | None,
    **options: Any,
) -> None:
    """Measure what dictionaries are worth, beside what they have to beat.

    Errors, L0, dead features; the model with its MLPs replaced; graphs; swaps; labels; of several
    dictionaries splitting and absorption, and all in one plot.
    """
    if name is not None and not transcoders:
        raise click.UsageError(
            f"--model {name} needs --transcoders: the folder or hub id of a set, or neurons for "
            "the model's own",
            click.get_current_context(),
        )
    if name is not None and options["corpus"] is None:
        raise click.UsageError(
            f"--model {name} needs --corpus: text to measure on", click.get_current_context()
        )
    if output is not None and (output.is_file() or not output.parent.is_dir()):
        raise Failure(f"cannot write {output}: expected a folder, in one that exists")
    asked = None if prompts is None else _lines(prompts)
    from replacement_models.process import quiet_transformers

    with quiet_transformers(), progress("Evaluating") as advance:
        model = _model(name, dtype, device)
        found = tracer.evaluate(
            model,
            transcoders=transcoders or None,
            prompts=asked,
            progress=lambda words, done, total: advance(done, total or None, words),
            **options,
        )
    for note in model.notes:
        say(note, err=True)
    if output is not None:
        found.save(output)
    print_evaluation(found)
    if output is not None:
        say(f"Saved {output}. To see it: open {output / 'evaluation.html'}")


def _model(name: str | None, dtype: str, device: str) -> Any:
    """The embedded model with its dictionary, or the model that is named with none."""
    if name is None:
        return tracer.ReplacementModel.load(device=device, dtype=dtype)
    return tracer.ReplacementModel.without_dictionary(name, device, dtype)


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    found = [line for line in lines if line.strip()]
    if not found:
        raise click.UsageError(f"{path}: holds no prompt", click.get_current_context())
    return found


def print_evaluation(found: "Evaluation") -> None:
    """Every dictionary, then what differs between widths."""
    measured = found.figures["measured_tokens"]
    say("measured on", f"{measured:,} tokens; baselines fitted on other text")
    for one in found.dictionaries:
        say(one["name"], one["kind"], f"{one['features']:,} features")
        say_table(COLUMNS, [_row(layer) for layer in [*one["layers"], one["mean"]]])
        _print_replaced(one["replaced"])
        _print_graphs(one["graphs"], found.figures["settings"])
        _print_rest(one)
    for pair in found.figures["widths"]:
        shares = (f"{name} {_number(value)}" for name, value in pair["mean"].items())
        say(f"{pair['narrow']} beside {pair['wide']}", *shares)


def _row(layer: Mapping[str, Any]) -> list[str]:
    cells = [str(layer.get("layer", "mean"))]
    for name in ("total", "rest", "median"):
        for kind in ("error", "affine_error"):
            cells.append(_number((layer[kind] or {}).get(name)))
    alone = layer["alone"] or {}
    return [*cells, *map(_number, (layer["l0"], layer["dead"], alone.get("kl")))]


def _print_replaced(whole: Mapping[str, Any]) -> None:
    for name, said in (("all replaced", whole), *whole["baselines"].items()):
        say(
            name if said is whole else f"by {name} instead",
            f"KL {_number(said['kl'])}",
            f"agreement {_number(said['agreement'])}",
            f"CE recovered {_number(said['recovered'])}",
        )


def _print_graphs(graphs: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> None:
    if graphs is None:
        return
    count = len(graphs["prompts"])
    named = {
        "graph": f"graphs, {count} prompts",
        "capped": f"{settings['capped']} features only",
        "skip_alone": "linear skip alone",
        "affine_alone": "affine maps alone",
    }
    for name, words in named.items():
        if graphs[name] is not None:
            scores = (
                f"{score} {_number(graphs[name][score]['mean'])}"
                for score in ("replacement", "completeness")
            )
            say(words, *scores)


def _print_rest(one: Mapping[str, Any]) -> None:
    swaps, labels = one["swaps"], one["labels"]
    if swaps:
        kept = f"{_number(swaps['kept'])} stay"
        say(f"swaps, {swaps['pairs']}", f"{_number(swaps['flipped'])} flip", kept)
    if labels and "refused" in labels:
        say("labels", labels["refused"])
    elif labels:
        true = f"{_number(labels['true'])} with F1 0.7 or more"
        say("labels", f"{_number(labels['shown'])} of the features that fire", true)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
