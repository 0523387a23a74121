"""`tracer monitor`: features, groups and directions over a stream of texts."""

import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

import tracer
from tracer.commands.features import open_store
from tracer.commands.models import load_model
from tracer.commands.options import EXISTING, POSITIVE, examples, float_or_nan, model_options
from tracer.commands.say import say

if TYPE_CHECKING:
    from tracer import FeatureStore, Watch
    from tracer.monitoring.lines import Line
    from tracer.monitoring.monitor import Monitored

EVERY = 10.0
"""Seconds between two lines about throughput."""


def with_threshold(value: str) -> tuple[str, float]:
    """Read `cold.safetensors=2` as ("cold.safetensors", 2.0)."""
    path, _, text = value.rpartition("=")
    number = float_or_nan(text)
    if not path or not abs(number) < float("inf"):
        raise click.BadParameter(f"{value!r} is not NAME=THRESHOLD, as in cold.safetensors=2")
    return path, number


@click.command(
    epilog=examples(
        "tracer monitor my.features texts.jsonl --features 2/311:4.5,0/17:50%",
        "tail -f log.jsonl | tracer monitor my.features --features 2/311 --batch 1",
        "tracer monitor my.features texts.jsonl --group 'hot.graph:opposites=3'",
        "tracer monitor my.features texts.jsonl --direction texas.safetensors=2",
    )
)
@click.argument("store", type=EXISTING)
@click.argument("input", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option(
    "--features",
    metavar="L/F:T,...",
    help="Features and thresholds: an activation, N% of the store's maximum, or none: half of it.",
    show_default="none",
)
@click.option(
    "--group",
    "groups",
    type=with_threshold,
    metavar="GRAPH:NAME=T",
    multiple=True,
    help="A group saved with a graph: the sum of its features' activations.",
    show_default="none",
)
@click.option(
    "--direction",
    "directions",
    type=with_threshold,
    metavar="FILE[:LABEL]=T",
    multiple=True,
    help="A saved direction: how far the stream lies along it.",
    show_default="none",
)
@model_options
@click.option("--field", default="text", help="Key that holds the text.")
@click.option("--batch", type=POSITIVE, default=32, help="Texts a forward pass.")
@click.option(
    "--context",
    type=POSITIVE,
    help="Tokens read together; longer texts are read in pieces.",
    show_default="1024, or what the model reads",
)
def monitor(store: Path, input: Path, field: str, **options: Any) -> None:
    """Say which features cross their thresholds where, a JSON line for each text of INPUT.

    INPUT is JSONL, or - for standard input: an object a line with a text, a text, or a list of
    token ids. A line that is broken is told on stderr and left out. Memory holds one batch.
    """
    opened = open_store(store)
    watches = watches_of(options, opened)
    if str(input) != "-" and not input.is_file():
        raise tracer.TraceError(f"{input}: no such file; give JSONL, or - for standard input")
    batch, context = options.pop("batch"), options.pop("context")
    model = load_model(options)
    if any(watch.features for watch in watches):
        opened.check(model)
    stream = nullcontext(sys.stdin.buffer) if str(input) == "-" else input.open("rb")
    with stream as source, Throughput() as told:
        waiting: deque[Line] = deque()
        texts = taken(source, field, model.host.vocabulary, told, waiting)
        for found in tracer.monitor(model, texts, watches, batch=batch, context=context):
            say(json.dumps(as_json(waiting.popleft(), found, watches, opened)))
            told.add(found.tokens)


def watches_of(options: dict[str, Any], store: "FeatureStore") -> "list[Watch]":
    """Take --features, --group and --direction out of `options`."""
    features, groups, directions = (
        options.pop(name) for name in ("features", "groups", "directions")
    )
    found = [tracer.Watch.named(one, store) for one in (features or "").split(",") if one.strip()]
    for text, threshold in groups:
        graph, _, name = text.rpartition(":")
        if not graph:
            raise click.UsageError(f"{text!r} is not GRAPH:NAME", click.get_current_context())
        found.append(tracer.Watch.group(graph, name, threshold))
    found += [tracer.Watch.direction(path, threshold) for path, threshold in directions]
    if not found:
        raise click.UsageError(
            "nothing to watch: give --features, --group or --direction", click.get_current_context()
        )
    return found


def taken(
    source: BinaryIO, field: str, vocabulary: int, told: "Throughput", waiting: "deque[Line]"
) -> Iterator[str | list[int]]:
    """Texts of a stream; their lines wait for what is found."""
    from tracer.monitoring.lines import texts

    for line in texts(source, field, vocabulary, told.left_out):
        waiting.append(line)
        yield line.text


def as_json(
    line: "Line", found: "Monitored", watches: "list[Watch]", store: "FeatureStore"
) -> dict[str, Any]:
    """What is said of one text."""
    kinds = {watch.name: watch for watch in watches}
    said: dict[str, Any] = {"line": line.number}
    if line.id is not None:
        said["id"] = line.id
    said["tokens"] = found.tokens
    said["crossed"] = [
        {
            "name": one.name,
            "kind": kinds[one.name].kind,
            **label_of(kinds[one.name], store),
            "threshold": one.threshold,
            "maximum": one.maximum,
            "at": [
                list(place) for place in zip(one.positions, one.tokens, one.values, strict=True)
            ],
        }
        for one in found.crossings
    ]
    return said


def label_of(watch: "Watch", store: "FeatureStore") -> dict[str, str]:
    """What the store calls a feature."""
    return {"label": store.name(*watch.features[0])} if watch.kind == "feature" else {}


class Throughput:
    """Says on stderr how fast it goes, now and then and at the end, however that comes."""

    def __init__(self) -> None:
        """Begin now."""
        self.begun = self.said = time.monotonic()
        self.texts = self.tokens = self.broken = 0

    def add(self, tokens: int) -> None:
        """One text is done."""
        self.texts += 1
        self.tokens += tokens
        if time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            self._say()

    def left_out(self, why: str) -> None:
        """One line is broken."""
        self.broken += 1
        say(why, err=True)

    def __enter__(self) -> "Throughput":
        return self

    def __exit__(self, *_: object) -> None:
        self._say()

    def _say(self) -> None:
        seconds = max(time.monotonic() - self.begun, 1e-9)
        say(
            f"{self.texts:,} texts, {self.tokens:,} tokens in {seconds:.1f} s: "
            f"{self.tokens / seconds:,.0f} tokens/s; {self.broken:,} lines left out",
            err=True,
        )
