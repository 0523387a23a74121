"""Command line: parse, call one function, print. No mathematics here."""

import json
import math
import re
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # torch takes seconds to import, --help must not wait: imports stand inside
    from torch import Tensor

    from graphs import AttributionGraph
    from replacement_models import ReplacementModel
    from tracer import Change, Difference, Intervention

Command = Callable[..., Any]

OURS = {"graphs", "replacement_models", "tracer"}
GRAPH_FILES = {"nodes.arrow", "edges.arrow"}
EDGES_DRAWN = 300
MADE_BY = {
    **dict.fromkeys((".svg", ".png", ".pdf", ".dot"), "render"),
    **dict.fromkeys((".json", ".graphml", ".csv"), "export"),
}
"""Suffix of a file -> the command that writes it from a graph."""
WRITTEN_FORMATS = (
    *("tracer", "circuit-tracer", "clt-forge", "crosslayer-coding", "crosslayer-transcoder"),
    *("gemma-scope", "gemma-scope-2", "openmoss", "saelens", "sparsify"),
)
FEATURE_VALUE = re.compile(r"(\d{1,9})/(-?\d{1,9}|(-?\d{1,9})?:(-?\d{1,9})?)/(\d{1,9})=(.+)")


class Failure(click.ClickException):
    """Bad input: one line for the terminal and exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class Interrupted(Failure):
    """Ctrl-C, with the exit code that shells expect."""

    exit_code = 130


def explain(error: Exception) -> str | None:
    """Say in one line what the user can mend; None for a bug, which keeps its traceback."""
    if isinstance(error, click.UsageError):
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return error.format_message() + hint
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    ours = type(error).__module__.partition(".")[0] in OURS
    return str(error) if ours else None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into a `Failure`; let everything else through."""
    try:
        yield
    except (click.exceptions.NoArgsIsHelpError, BrokenPipeError):
        raise
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted") from error
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise Failure(message) from error


class Group(click.Group):
    """Shows bad input as one line with exit code 2; any other exception is a bug."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options of the group itself."""
        with one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run the command."""
        with one_line_errors():
            return super().invoke(ctx)


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


POSITIVE, COUNT = click.IntRange(min=1), click.IntRange(min=0)
SHARE = click.FloatRange(0, 1, min_open=True)
EXISTING = click.Path(path_type=Path)

folder = click.argument("folder", type=EXISTING)
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
        "--dtype", type=click.Choice(["float32", "float64", "bfloat16"]), default="float32"
    ),
    click.option("--device", default="cpu", help="cpu, cuda, cuda:1, ..."),
)
trace_options = together(
    click.option(
        "--max-features",
        type=COUNT,
        help="Explain at most so many features, the most influential.",
        show_default="all",
    ),
    click.option(
        "--rank-every",
        type=POSITIVE,
        help="With --max-features: rank again after so many.",
        show_default="a schedule",
    ),
    click.option(
        "--max-logits", type=POSITIVE, default=10, help="Explain at most so many next tokens."
    ),
    click.option(
        "--logit-mass",
        type=SHARE,
        default=0.95,
        help="Explain the likeliest next tokens up to this probability.",
    ),
    click.option(
        "--target",
        metavar="TOKEN",
        multiple=True,
        help="Explain this token instead (mind the space: ' Austin'); may be repeated.",
    ),
    click.option("--minus", metavar="TOKEN", help="Explain each --target minus this token."),
    click.option(
        "--position", type=int, default=-1, help="Explain what comes after this position."
    ),
    click.option(
        "--skip-positions",
        type=COUNT,
        default=1,
        help="No features and errors at the first so many positions.",
    ),
    click.option(
        "--edge-floor",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        help="Drop effects below this share of their target's input, to save memory.",
    ),
    click.option(
        "--recompute-patterns/--keep-patterns",
        default=None,
        help="Make attention patterns anew, layer by layer, to save memory.",
        show_default="by size",
    ),
    click.option(
        "--lazy/--in-memory",
        default=None,
        help="Leave decoders on disk and read the rows of active features.",
        show_default="by size",
    ),
    click.option(
        "--split-products",
        is_flag=True,
        help="Multiply in split bfloat16 by a kernel compiled at first use; needs AMX.",
    ),
    click.option(
        "--memory-limit",
        type=click.FloatRange(min=0, min_open=True),
        metavar="GB",
        help="Refuse to trace where more is needed once the prompt is recorded; inf never does.",
        show_default="what is free",
    ),
)
prune_options = together(
    click.option("--nodes", type=SHARE, default=0.8, help="Share of the node influence to keep."),
    click.option("--edges", type=SHARE, default=0.98, help="Share of the edge influence to keep."),
)


def output(help: str, **settings: Any) -> Command:
    """Make the -o option of a command."""
    path = click.Path(path_type=Path)
    return click.option("-o", "--output", type=path, help=help, **settings)


def examples(*lines: str) -> str:
    """Commands to show at the end of a help text."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@click.group(
    cls=Group,
    context_settings={"show_default": True, "max_content_width": 100},
    epilog=examples(
        'tracer trace "The capital of the state containing Dallas is" -o dallas.graph',
        "tracer render dallas.graph -o dallas.svg",
    ),
)
@click.version_option(package_name="tracer")
def main() -> None:
    """Trace circuits in language models."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the terminal's encoding may lack a token's letters
            stream.reconfigure(errors="backslashreplace")


@main.command(
    epilog=examples(
        'tracer trace "The capital of the state containing Dallas is" -o dallas.graph',
        'tracer trace "The opposite of hot is" --target " cold" --minus " hot"',
    )
)
@prompt_options
@model_options
@trace_options
@output("Folder or .zip to write.", show_default="named after the prompt")
def trace(
    prompt: str | None, tokens: list[int] | None, output: Path | None, **options: Any
) -> None:
    """Explain the next token after PROMPT; write the whole graph."""
    text = only_one(prompt, tokens)
    output = output or Path(f"{slug(text)}.graph")
    refuse_unwritable_graph(output)
    options["targets"] = targets(options.pop("target"), options.pop("minus"))
    model = load_model(options)
    import tracer

    what = "Explaining features"
    with progress(what) as advance:
        options["on_estimate"] = lambda need: advance(0, None, f"{what} (memory: about {need})")
        graph = tracer.trace(model, text, progress=advance, keep_partial=True, **options)
    partial = "partial" in graph.metadata
    if partial:  # beside, because a whole graph of an earlier run may stand there
        output = output.with_name(f"{output.stem}.partial{output.suffix}")
    graph.save(output)
    print_summary(graph)
    print_answers(
        model, [("next token", model.record(text, keep_patterns=False).logits[options["position"]])]
    )
    print_paths(graph, 10)
    place, picture = (shlex.quote(str(path)) for path in (output, output.with_suffix(".svg")))
    click.echo(f"Saved {output}. To draw it: tracer render {place} -o {picture}")
    if partial:
        raise Interrupted(f"interrupted; {output} holds what was finished")


@main.command(epilog=examples("tracer show dallas.graph", "tracer show dallas.graph --paths 30"))
@folder
@click.option("--features", type=COUNT, default=10, help="How many of the strongest features.")
@click.option("--paths", type=COUNT, default=10, help="How many of the strongest paths.")
def show(folder: Path, features: int, paths: int) -> None:
    """Print a graph's scores, strongest features and paths."""
    from graphs import AttributionGraph

    graph = AttributionGraph.load(folder)
    print_origin(graph)
    print_summary(graph)
    print_features(graph, features)
    print_paths(graph, paths)
    if "validation" in graph.metadata:
        print_validation(graph.metadata["validation"])


@main.command(epilog=examples("tracer prune dallas.graph -o small.graph --nodes 0.8 --edges 0.98"))
@folder
@prune_options
@output("Folder or .zip to write.", required=True)
def prune(folder: Path, nodes: float, edges: float, output: Path) -> None:
    """Write what matters most of a graph as a graph."""
    refuse_unwritable_graph(output)
    graph, kept = pruned(folder, nodes, edges)
    graph.save(output)
    click.echo(kept, err=True)
    click.echo(f"Saved {output}")


@main.command(epilog=examples("tracer render dallas.graph -o dallas.svg"))
@folder
@prune_options
@click.option(
    "--max-edges",
    type=POSITIVE,
    help="Draw at most so many edges, the most influential.",
    show_default="300, or all with --nodes 1 --edges 1",
)
@output("Picture to write: .svg, .png, .pdf or .dot.", required=True)
def render(folder: Path, nodes: float, edges: float, max_edges: int | None, output: Path) -> None:
    """Draw what matters most of a graph."""
    graph, kept = pruned(folder, nodes, edges)
    most = max_edges or (None if nodes == edges == 1 else EDGES_DRAWN)
    graph.render(output, edges=most)
    click.echo(kept, err=True)
    if most is not None and most < graph.effect.nnz:
        click.echo(f"Drew the {most} most influential edges (--max-edges)", err=True)
    click.echo(f"Saved {output}")


@main.command(
    epilog=examples(
        "tracer export dallas.graph -o dallas.graphml",
        "tracer export dallas.graph -o all.json --nodes 1 --edges 1",
    )
)
@folder
@prune_options
@output("File to write: .json, .graphml or .csv.", required=True)
def export(folder: Path, nodes: float, edges: float, output: Path) -> None:
    """Write what matters most of a graph for other tools."""
    graph, kept = pruned(folder, nodes, edges)
    graph.export(output)
    click.echo(kept, err=True)
    click.echo(f"Saved {output}")


@main.command(
    epilog=examples(
        "tracer validate dallas.graph", "tracer validate my.graph --model M --transcoders T"
    )
)
@folder
@model_options
@click.option(
    "--corpus",
    type=EXISTING,
    help="Text file, a prompt a line, to take the means from that ablation puts in.",
    show_default="the embedded model's own, none for others",
)
@click.option("--draws", type=POSITIVE, default=10, help="Random circuits at each threshold.")
@click.option("--seed", type=COUNT, default=0, help="Of the random circuits.")
def validate(folder: Path, corpus: Path | None, draws: int, seed: int, **options: Any) -> None:
    """Test an unpruned graph by interventions; print and store with it what comes out.

    Tables and plots are written into the FOLDER; a .zip keeps only the figures.
    """
    from graphs import AttributionGraph

    graph = AttributionGraph.load(folder)
    prompts = None if corpus is None else corpus.read_text(encoding="utf-8").split("\n")
    model = load_model(options)
    import tracer

    with progress("Zeroing every feature"):
        found = tracer.validate(
            model,
            graph,
            None if prompts is None else [line for line in prompts if line.strip()],
            draws=draws,
            seed=seed,
        )
    written = found.save(folder)
    print_validation(found.summary)
    click.echo(f"Saved {', '.join(str(path) for path in written)}")


def change(flag: str, field: str, help: str) -> Command:
    """Make an option of `intervene` that fills a field of `tracer.Intervention`."""
    return click.option(
        flag, field, type=feature_value, metavar="L/P/F=X", multiple=True, help=help
    )


change_options = together(
    change("--set", "value", "Set feature F of layer L at position P to X."),
    change("--scale", "scale", "Multiply it by X."),
    change("--add", "add", "Add X to it."),
)


@main.command(
    epilog=examples(
        'tracer intervene "The opposite of hot is" --set 0/4/414=0 --mode free',
        'tracer intervene "The opposite of hot is" --scale 1/2:5/42=-1 --add 0/3/7=2.5',
    )
)
@prompt_options
@model_options
@change_options
@click.option(
    "--mode",
    type=click.Choice(["direct", "constrained", "free"]),
    default="direct",
    help="Freeze all else, clamp the MLPs of --layers, or recompute everything downstream.",
)
@click.option("--layers", type=layer_range, metavar="A:B", help="Clamped layers, B not included.")
@click.option(
    "--freeze-attention/--recompute-attention",
    default=None,
    help="Hold attention patterns.",
    show_default="held, but for --mode free",
)
@click.option(
    "--freeze-norms/--recompute-norms",
    default=None,
    help="Hold norm denominators.",
    show_default="held in --mode direct",
)
def intervene(prompt: str | None, tokens: list[int] | None, mode: str, **options: Any) -> None:
    """Change features and print what becomes of the answer.

    P may count from the end (-1) or be a slice (2:5). Options may be repeated.
    """
    text = only_one(prompt, tokens)
    interventions = changes_of(options)
    if not interventions:
        raise click.UsageError("expected --set, --scale or --add", click.get_current_context())
    model = load_model(options)
    import tracer

    with progress("Running the model"):
        result = tracer.intervene(model, text, interventions, mode, **options)
    print_answers(model, [("before", result.base.logits[-1]), ("after", result.logits[-1])])
    print_responses(result, [model.token_string(token) for token in model.tokenize(text)])


def changes_of(options: dict[str, Any]) -> "list[Intervention]":
    """Take --set, --scale and --add out of `options`."""
    places = {field: options.pop(field) for field in ("value", "scale", "add")}
    if not any(places.values()):
        return []
    from tracer import Intervention

    return [
        Intervention(layer=layer, position=position, feature=feature, **{field: number})
        for field, named in places.items()
        for layer, position, feature, number in named
    ]


@main.command(
    epilog=examples(
        'tracer generate "The opposite of hot is" --scale 0/4/414=-1',
        'tracer generate "One two three" --max-new-tokens 8 --temperature 0.7 --seed 3',
    )
)
@prompt_options
@model_options
@change_options
@click.option("--max-new-tokens", type=POSITIVE, default=20, help="At most so many.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, help="0 takes the likeliest."
)
@click.option("--seed", type=COUNT, default=0, help="Of the sampling.")
def generate(prompt: str | None, tokens: list[int] | None, **options: Any) -> None:
    """Continue PROMPT as it is and under changed features.

    A slice without an end (2:) goes on through the new tokens.
    """
    text = only_one(prompt, tokens)
    interventions = changes_of(options)
    model = load_model(options)
    import tracer

    with progress("Running the model"):
        [found] = tracer.generate(model, [text], interventions, **options)
    print_table((), [("as it is", found.plain.text), ("changed", found.steered.text)])


@main.command(
    epilog=examples(
        'tracer patch "The opposite of hot is" "The opposite of day is" --target " cold"',
        'tracer patch A B --target " cold" --minus " night" --sites head -o heads.svg',
    )
)
@click.argument("clean")
@click.argument("corrupted")
@model_options
@click.option("--target", metavar="TOKEN", required=True, help="Measure its probability.")
@click.option("--minus", metavar="TOKEN", help="Measure the logit of --target less this one's.")
@click.option(
    "--sites",
    type=click.Choice(["residual", "attention", "mlp", "head", "feature"]),
    default="residual",
    help="What to patch, layer by layer and position by position.",
)
@click.option(
    "--method",
    type=click.Choice(["exact", "attribution"]),
    default="exact",
    help="Run every patch, or estimate all from one gradient.",
)
@output("Heat map to write: .svg.")
def patch(clean: str, corrupted: str, target: str, minus: str | None, **options: Any) -> None:
    """Run CORRUPTED with what CLEAN holds at one site after the other."""
    output: Path | None = options.pop("output")
    if output is not None and output.suffix != ".svg":
        raise Failure(f"cannot write {output}: expected a suffix of .svg")
    model = load_model(options)
    from tracer import patching

    metric = (
        patching.probability(model, target)
        if minus is None
        else patching.logit_difference(model, target, minus)
    )
    with progress("Patching"):
        table = patching.patch(model, clean, corrupted, metric, **options)
    print_patches(table.to_pylist())
    if output is not None:
        from graphs.exchange.files import writing

        words = [model.token_string(token) for token in model.tokenize(corrupted)]
        with writing(output) as partial:
            partial.write_text(patching.heat_map(table, labels=words), encoding="utf-8")
        click.echo(f"Saved {output}")


@main.command(
    epilog=examples(
        "tracer convert owner/clt my-clt", "tracer convert my-clt there --format circuit-tracer"
    )
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=EXISTING)
@click.option(
    "--format", type=click.Choice(WRITTEN_FORMATS), default="tracer", help="What to write."
)
def convert(source: str, target: Path, format: str) -> None:
    """Rewrite transcoders, a folder or hub id in any known format, as another format."""
    with progress("Converting"):
        from replacement_models.formats import convert as rewritten

        path = rewritten(source, target, format)
    click.echo(f"Saved {path}")


def only_one(prompt: str | None, tokens: list[int] | None) -> str | list[int]:
    """Take the text or the token ids, whichever was given."""
    if prompt is not None and tokens is None:
        return prompt
    if tokens is not None and prompt is None:
        return tokens
    got = "neither" if prompt is None else "both"
    raise click.UsageError(f"expected PROMPT or --tokens, got {got}", click.get_current_context())


def slug(text: str | list[int]) -> str:
    """Make a file name of a prompt, at most 60 characters and 200 bytes."""
    words = text if isinstance(text, str) else "tokens " + " ".join(map(str, text))
    name = re.sub(r"[\W_]+", "-", words.lower())[:60].encode(errors="ignore")[:200]
    return name.decode(errors="ignore").strip("-") or "prompt"


def targets(plus: Sequence[str], minus: str | None) -> "list[str] | list[Difference] | None":
    """Read --target and --minus as `tracer.trace` takes them."""
    if minus is None:
        return list(plus) or None
    if not plus:
        raise click.UsageError("--minus needs a --target", click.get_current_context())
    from tracer import Difference

    return [Difference(token, minus) for token in plus]


def load_model(options: dict[str, Any]) -> "ReplacementModel":
    """Take the options of `model_options` out of `options` and load what they name."""
    names = ("name", "transcoders", "device", "dtype", "lazy")
    with progress("Loading the model"):
        from transformers.utils import logging

        from replacement_models import ReplacementModel

        logging.set_verbosity_error()  # what is wrong, our own errors say in one line
        logging.disable_progress_bar()
        return ReplacementModel.load(**{name: options.pop(name, None) for name in names})


def pruned(folder: Path, nodes: float, edges: float) -> tuple["AttributionGraph", str]:
    """Load and prune a graph; return it and what was dropped, in words."""
    from graphs import AttributionGraph

    graph = AttributionGraph.load(folder)
    small = graph.prune(nodes=nodes, edges=edges)
    rows, links = graph.nodes.num_rows, graph.effect.nnz
    kept = (
        f"Kept {small.nodes.num_rows} of {rows} nodes and {small.effect.nnz} of {links} edges "
        f"(--nodes {nodes:g} --edges {edges:g}; 1 and 1 keep all)"
    )
    return small, kept


def refuse_unwritable_graph(path: Path) -> None:
    """Refuse, before long work, a place where a graph cannot or should not be written.

    Raises:
        Failure: something that is no graph stands there, or nothing can be written there.
    """
    if path.suffix in MADE_BY:
        what = f"a graph is a folder or .zip; tracer {MADE_BY[path.suffix]} makes {path.suffix}"
        raise Failure(f"cannot write {path}: {what} files of it")
    if path.exists() and not replaceable(path):
        raise Failure(f"cannot write {path}: it exists and is no graph; name another with -o")
    parent = path if path.is_dir() else path.absolute().parent
    if not parent.is_dir():
        raise Failure(f"cannot write {path}: there is no folder {parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise Failure(f"cannot write {path}: {parent}: {error.strerror}") from error


def replaceable(path: Path) -> bool:
    """Whether an earlier graph or an empty folder stands at a path that exists."""
    if path.suffix != ".zip":
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
        return not names or names >= GRAPH_FILES
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()) == GRAPH_FILES


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """Show on a terminal what takes time.

    Yields what to call with how much of how much is done, and with other words for it.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, what=None: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, what=None: bar.update(
            task, completed=done, total=total, description=what
        )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table and an empty line: aligned on a terminal, with tabs elsewhere."""
    lines = [[cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [columns, *lines] if columns else lines:
            click.echo("\t".join(line))
        click.echo()
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, show_header=bool(columns))
    for line in lines:  # as Text, because a token may look like markup
        table.add_row(*(Text(value, overflow="fold") for value in line))
    Console().print(table, "")


def cell(value: object) -> str:
    """Show floats with four digits and everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def quoted(token: str) -> str:
    """Show a token with its spaces, on one line."""
    return json.dumps(token, ensure_ascii=False)


def nodes_of(graph: "AttributionGraph", kind: str) -> list[dict[str, Any]]:
    """Rows of the node table of one kind."""
    from pyarrow import compute

    return graph.nodes.filter(compute.equal(graph.nodes["kind"], kind)).to_pylist()


def print_origin(graph: "AttributionGraph") -> None:
    """Print what was traced and how."""
    about = graph.metadata
    names = ("prompt", "model", "model_revision", "transcoders", "transcoders_hash")
    rows = [(name.replace("_", " "), about[name]) for name in names if about.get(name)]
    settings = about.get("settings", {}).items()
    shown = " ".join(f"{name}={value}" for name, value in settings if value is not None)
    if "partial" in about:
        rows.append(("partial", "interrupted before every feature was explained"))
    print_table((), [*rows, ("settings", shown)])


def print_summary(graph: "AttributionGraph") -> None:
    """Print what the graph explains, and how much of it."""
    tokens = map(quoted, graph.metadata.get("tokens", []))
    targets = (
        f"{quoted(node['text'] or node['label'])} {node['probability']:.4g}"
        for node in nodes_of(graph, "logit")
    )
    features, errors = len(nodes_of(graph, "feature")), len(nodes_of(graph, "error"))
    rows = [
        ("tokens", " ".join(tokens)),
        ("explained", ", ".join(targets)),
        ("graph", f"{features} features, {errors} errors, {graph.effect.nnz} edges"),
        ("replacement score", f"{graph.scores.replacement:.4f}"),
        ("completeness score", f"{graph.scores.completeness:.4f}"),
    ]
    if dropped := graph.metadata.get("floored_share"):
        rows.append(("below the edge floor", f"{dropped:.2%} of all absolute effects"))
    if worst := graph.metadata.get("conservation"):
        where = f"of the largest pre-activation, in row {worst['node']}"
        rows.append(("conservation error", f"at worst {worst['relative']:.1e} {where}"))
    print_table((), rows)


def print_features(graph: "AttributionGraph", count: int) -> None:
    """Print the features with the largest influence."""
    tokens = {node["position"]: node["text"] for node in nodes_of(graph, "embedding")}
    features = sorted(nodes_of(graph, "feature"), key=lambda node: -node["influence"])
    rows = [
        (
            f"{node['layer']}/{node['position']}/{node['feature']}",
            quoted(tokens.get(node["position"]) or ""),
            *(node[column] for column in ("activation", "influence", "label")),
        )
        for node in features[:count]
    ]
    print_table(("feature", "at", "activation", "influence", "label"), rows)


def print_paths(graph: "AttributionGraph", count: int) -> None:
    """Print the strongest paths from a token or an error to a logit, in words."""
    print_table(
        ("strongest paths, and what part of the answer each carries",),
        [(graph.describe(path),) for path in (graph.paths(count) if count else [])],
    )


def print_answers(
    model: "ReplacementModel", answers: "Sequence[tuple[str, Tensor]]", count: int = 5
) -> None:
    """Print the likeliest next tokens of one or more runs side by side.

    Args:
        model: which model's tokens they are.
        answers: heading and logits (V,) of each run.
        count: how many tokens.
    """
    header, columns = [], []
    for heading, logits in answers:
        top = logits.softmax(-1).topk(min(count, len(logits)))
        header += [heading, "probability"]
        columns.append([quoted(model.token_string(token)) for token in top.indices.tolist()])
        columns.append(top.values.tolist())
    print_table(header, zip(*columns, strict=True))


def print_validation(summary: dict[str, Any]) -> None:
    """Print how far to believe a graph."""
    from graphs.validation_summary import rows

    lines = [
        (name, "-" if value is None else f"{value:.3f}", meaning)
        for name, value, meaning in rows(summary)
    ]
    print_table(("validation", "", ""), lines)


def print_patches(rows: Sequence[dict[str, Any]], count: int = 15) -> None:
    """Print the sites whose patch does most."""
    names = ("layer", "position", "index", "before", "after", "effect", "recovered")
    best = sorted(rows, key=lambda row: -abs(row["effect"]))[:count]
    shown = [["-" if row[name] is None else row[name] for name in names] for row in best]
    print_table(names, shown)


def print_responses(result: "Change", tokens: Sequence[str], count: int = 10) -> None:
    """Print the features that respond most; the changed ones themselves do not show."""
    before, after = result.base.activations, result.activations
    response = (after - before).abs()
    noise = 1e-6 * before.abs().max()
    places = sorted(
        zip(
            response[response > noise].tolist(), (response > noise).nonzero().tolist(), strict=True
        ),
        key=lambda pair: -pair[0],
    )
    rows = [
        (
            f"{layer}/{at}/{feature}",
            quoted(tokens[at]),
            before[layer, at, feature].item(),
            after[layer, at, feature].item(),
        )
        for _, (layer, at, feature) in places[:count]
    ]
    click.echo(
        f"{len(places)} other features respond, most of all:"
        if rows
        else "no other feature responds"
    )
    print_table(("feature", "at", "before", "after"), rows)


if __name__ == "__main__":
    main()
