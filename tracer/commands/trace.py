"""`tracer trace`: the graph of a prompt, or of each prompt of a file (`many.py`)."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.graph_files import refuse_unwritable_graph
from tracer.commands.group import Failure, Interrupted
from tracer.commands.lean import lean_process
from tracer.commands.many import (
    ONLY_WITH_PROMPTS,
    many_options,
    refuse_without_prompts,
    trace_prompts,
)
from tracer.commands.models import load_model
from tracer.commands.options import (
    COUNT,
    EXISTING,
    POSITIVE,
    SHARE,
    examples,
    model_options,
    only_one,
    output,
    prompt_options,
    together,
)
from tracer.commands.progress import progress
from tracer.commands.say import say
from tracer.commands.tables import print_answers, print_paths, print_summary
from tracer.interrupts import Stopping, stopped_once

if TYPE_CHECKING:
    from torch import Tensor

    from tracer import Difference, Direction

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
        show_default="the likeliest tokens",
    ),
    click.option(
        "--minus",
        metavar="TOKEN",
        help="Explain each --target minus this token.",
        show_default="nothing",
    ),
    click.option(
        "--target-direction",
        metavar="FILE",
        multiple=True,
        help="Explain saved directions of the stream (tracer direction) instead or as well; "
        "FILE:LABEL is one of several.",
        show_default="none",
    ),
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
        show_default="off",
    ),
    click.option(
        "--tensor-cores",
        type=click.Choice(("tf32", "3xtf32")),
        help="Multiply on an NVIDIA GPU's tensor cores, in one or three products of TF32.",
        show_default="off",
    ),
    click.option(
        "--products",
        type=EXISTING,
        metavar="GRAPH",
        help="Multiply the ways that this graph was made in, for the same bytes again.",
        show_default="what is fastest here",
    ),
    click.option(
        "--store",
        type=EXISTING,
        help="Feature store to take labels from.",
        show_default="the one beside the dictionary",
    ),
    click.option(
        "--spill-above",
        type=click.FloatRange(min=0),
        default=1.0,
        metavar="GB",
        help="Write rows to disk as they are made where a trace takes more, or more than is free, "
        "to go on from there if it is killed and run again; inf never does.",
    ),
    click.option(
        "--keep-attention",
        is_flag=True,
        help="Find out what steers attention as well, so that pruning keeps it.",
        show_default="off",
    ),
    click.option(
        "--memory-limit",
        type=click.FloatRange(min=0, min_open=True),
        metavar="GB",
        help="Refuse to trace where more is needed once the prompt is recorded; inf never does.",
        show_default="what is free",
    ),
)


@click.command(
    epilog=examples(
        'tracer trace "The capital of the state containing Dallas is" -o dallas.graph',
        'tracer trace "The opposite of hot is" --target " cold" --minus " hot"',
        "tracer trace --prompts prompts.jsonl -o many.graphs",
    )
)
@prompt_options
@model_options
@trace_options
@many_options
@output("Folder or .zip to write.", show_default="named after the prompt, or the file")
@click.pass_context
def trace(
    context: click.Context,
    /,
    prompt: str | None,
    tokens: list[int] | None,
    prompts: Path | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Explain the next token after PROMPT; write the whole graph. Or after every prompt of a file.

    A dataset of graphs that was interrupted, even by kill -9, goes on where it was when the same
    command is run again.
    """
    if prompts is not None:
        if prompt is not None or tokens is not None:
            raise click.UsageError("expected PROMPT, --tokens or --prompts, got two", context)
        trace_prompts(prompts, output, _resolved(options))
        return
    refuse_without_prompts(context)
    for name in ONLY_WITH_PROMPTS:
        del options[name]
    with stopped_once() as stopping:
        _trace(prompt, tokens, output, options, stopping)


def _resolved(options: dict[str, Any]) -> dict[str, Any]:
    """Options with targets and ways of multiplying read from what names them."""
    lean_process()
    wanted = targets(options.pop("target"), options.pop("minus"))
    options["targets"] = [*(wanted or ()), *directions(options.pop("target_direction"))] or None
    options["products"] = products_of(options["products"])
    return options


def _trace(
    prompt: str | None,
    tokens: list[int] | None,
    output: Path | None,
    options: dict[str, Any],
    stopping: Stopping,
) -> None:
    """Trace, save and print; once stopped, do the rest with what is finished."""
    text = only_one(prompt, tokens)
    output = output or Path(f"{slug(text)}.graph")
    refuse_unwritable_graph(output)
    model = load_model(_resolved(options))
    answers: list[tuple[str, Tensor]] = []
    options["on_recording"] = lambda seen: answers.append(("next token", seen.logits[-1]))
    what = "Explaining features"
    with progress(what) as advance:
        options["on_estimate"] = lambda need: advance(0, None, f"{what} (memory: about {need})")
        graph = tracer.trace(model, text, progress=advance, keep_partial=True, **options)
    if refused := graph.metadata.get("labels_refused"):
        say(refused, err=True)
    partial = "partial" in graph.metadata
    if partial:  # beside, because a whole graph of an earlier run may stand there
        output = output.with_name(f"{output.stem}.partial{output.suffix}")
    graph.save(output)
    print_summary(graph)
    if cores := graph.metadata.get("tensor_cores"):
        say(
            f"Products in {cores['products']}: effects on the targets differ from float32's by "
            f"{cores['deviation'] or 0:.0e} of the largest."
        )
    print_answers(model, answers)
    print_paths(graph, 10)
    place, picture = (shlex.quote(str(path)) for path in (output, output.with_suffix(".svg")))
    say(f"Saved {output}. To draw it: tracer render {place} -o {picture}")
    if partial:
        raise Interrupted(f"interrupted; {output} holds what was finished", stopping.exit_code)


def products_of(graph: Path | None) -> dict[str, str] | None:
    """The ways of multiplying that a graph says it was made in.

    Raises:
        Failure: the graph says none.
    """
    if graph is None:
        return None
    versions = tracer.AttributionGraph.load(graph).metadata.get("versions")
    found = versions.get("products") if isinstance(versions, dict) else None
    if not isinstance(found, dict):
        raise Failure(f"--products: {graph} does not say how its products were made; leave it out")
    return found


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
    return [tracer.Difference(token, minus) for token in plus]


def directions(files: Sequence[str]) -> "list[Direction]":
    """Read what --target-direction names."""
    return [target for file in files for target in tracer.Directions.load(file).targets()]
