"""`tracer features`: know what the features of a dictionary do on text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.feature_words import (
    print_differing,
    print_example_list,
    print_feature,
    print_hits,
    print_labelled,
    print_separating,
)
from tracer.commands.group import Failure, Group
from tracer.commands.models import load_model
from tracer.commands.options import COUNT, EXISTING, POSITIVE, examples, model_options, output
from tracer.commands.progress import progress
from tracer.commands.say import say

if TYPE_CHECKING:
    from tracer import FeatureStore
    from tracer.features.labels.endpoint import Endpoint

store_option = click.option(
    "--store",
    type=EXISTING,
    help="Folder that `tracer features build` wrote.",
    show_default="beside the embedded dictionary",
)


@click.group(
    cls=Group,
    epilog=examples(
        "tracer features build --corpus texts.jsonl -o my.features",
        "tracer features show 2/311 --store my.features -o feature.html",
    ),
)
def features() -> None:
    """Know what features do: statistics, examples, search."""


@features.command(
    epilog=examples(
        "tracer features build --corpus prompts.txt --lines --alone -o my.features",
        "tracer features build --corpus docs/ --model M --transcoders neurons -o my.features",
    )
)
@click.option(
    "--corpus",
    required=True,
    metavar="FILE|FOLDER|hf:NAME",
    help="Plain text, JSONL or Parquet, or a folder of them; hf:owner/name[:config][@split].",
)
@model_options
@click.option("--field", default="text", help="Key or column that holds the text.")
@click.option("--lines", is_flag=True, help="Every line of plain text is a document.")
@click.option("--alone", is_flag=True, help="Every document begins a row, as a prompt does.")
@click.option(
    "--context", type=POSITIVE, help="Tokens a row.", show_default="256, or what the model reads"
)
@click.option("--window", type=POSITIVE, help="Tokens an example shows.", show_default="64")
@click.option("--batch", type=POSITIVE, default=32, help="Rows a forward pass.")
@click.option("--examples", type=POSITIVE, default=10, help="Strongest windows kept a feature.")
@click.option("--neighbours", type=COUNT, default=8, help="Neighbours kept a feature; 0 none.")
@click.option("--max-tokens", type=POSITIVE, help="Read at most so many.", show_default="all")
@click.option(
    "--lens",
    type=EXISTING,
    help="Jacobian lens: name also the tokens promoted through it.",
    show_default="none",
)
@click.option("--shard", type=POSITIVE, default=64, help="Batches between two commits.")
@output("Folder to write, the store.", required=True)
def build(corpus: str, output: Path, **options: Any) -> None:
    """Run a model over text once and write down what its features do.

    Interrupted, it goes on where it was when it is called again.
    """
    if output.exists():
        raise Failure(f"cannot write {output}: it exists; choose another name, or remove it first")
    model = load_model(options)
    with progress("Reading the corpus") as advance:
        store = tracer.FeatureStore.build(model, corpus, output, **options, progress=advance)
    counted = f"{store.about['tokens_counted']:,} tokens counted"
    say(f"Saved {output}: {counted}. To see a feature: tracer features show 0/0 --store ...")


@features.command(
    epilog=examples(
        "tracer features label my.features --corpus prompts.txt --lines",
        "tracer features label my.features --corpus docs/ --endpoint http://localhost:8000/v1 "
        "--model-name M",
    )
)
@click.argument("store", type=EXISTING)
@click.option(
    "--corpus",
    required=True,
    metavar="FILE|FOLDER|hf:NAME",
    help="Text: half to choose on, a quarter to mend on, a quarter to score on.",
)
@click.option("--held-out", metavar="CORPUS", help="Score on this.", show_default="a quarter")
@click.option(
    "--outside",
    metavar="CORPUS",
    help="Score on this too, text of another kind.",
    show_default="none",
)
@model_options
@click.option("--field", default="text", help="Key or column that holds the text.")
@click.option("--lines", is_flag=True, help="Every line of plain text is a document.")
@click.option("--max-tokens", type=POSITIVE, default=100_000, help="Read at most so many.")
@click.option(
    "--classes",
    type=EXISTING,
    metavar="FILE.json",
    help="Words by the name of their class, for labels to name.",
    show_default="none",
)
@click.option("--features", metavar="L/F,...", help="Only these.", show_default="all")
@click.option(
    "--endpoint",
    metavar="URL",
    help="Ask an OpenAI-compatible API about the rest.",
    show_default="none",
)
@click.option(
    "--model-name", metavar="M", help="Model that the endpoint is asked for.", show_default="none"
)
@click.option("--budget", type=POSITIVE, default=200, help="Requests made to it at most.")
def label(store: Path, corpus: str, **options: Any) -> None:
    """Label features by what can be tested, and say how true each label is.

    The endpoint's key, if it wants one, is read from OPENAI_API_KEY; its answers are kept beside
    the store.
    """
    opened = tracer.FeatureStore.load(store)
    asked = endpoint_of(store, options)
    classes, wanted = classes_of(options.pop("classes")), options.pop("features")
    places = [place(one.strip()) for one in wanted.split(",")] if wanted else None
    model = load_model(options)
    with progress("Reading the corpus") as advance:
        opened.label(
            model,
            corpus,
            classes=classes,
            features=places,
            endpoint=asked,
            progress=advance,
            **options,
        )
    print_labelled(opened)


@features.command(
    epilog=examples(
        "tracer features show 2/311 --store my.features",
        "tracer features show 2/311 --store my.features -o feature.html",
    )
)
@click.argument("feature", metavar="L/F")
@store_option
@click.option("--examples", "shown", type=COUNT, default=8, help="How many of the strongest.")
@output("Web page to write: .html.", show_default="none")
def show(feature: str, store: Path | None, shown: int, output: Path | None) -> None:
    """Print what is known of feature F of layer L."""
    if output is not None:
        check_page(output)
    wanted = place(feature)
    opened = open_store(store)
    known = opened[wanted]
    print_feature(opened, known)
    print_example_list(known, shown)
    if output is not None:
        from tracer.features.page import page

        write_page(output, page(opened, known))


@features.command(
    epilog=examples(
        "tracer features search Texas --store my.features",
        "tracer features search 2/311 --by similar --store my.features",
    )
)
@click.argument("query")
@store_option
@click.option(
    "--by",
    type=click.Choice(["token", "promoted", "label", "text", "similar"]),
    default="token",
    help="Match the tokens it fires on or promotes, its label, its examples; or its decoder.",
)
@click.option("--limit", type=POSITIVE, default=20, help="At most so many.")
def search(query: str, store: Path | None, by: str, limit: int) -> None:
    """Find features by a token, a promoted token, a label, text, or likeness to L/F."""
    opened = open_store(store)
    print_hits(opened, opened.search(query, by, limit), by)


def differ_sets(first: Path, second: Path, limit: int, options: dict[str, Any]) -> None:
    """Compare two files of texts."""
    from replacement_models.text.documents import documents

    field, reading = options.pop("field"), options.pop("reading")
    sets = [list(documents(path, field, lines=True)) for path in (first, second)]
    model = load_model(options)
    with progress("Running the texts") as advance:
        found = tracer.separating(model, *sets, reading=reading, limit=limit, progress=advance)
    print_separating(model, found)


@features.command("map", epilog=examples("tracer features map my.features -o map.html"))
@click.argument("store", type=EXISTING)
@click.option("--most", type=POSITIVE, default=2000, help="Points at most, those that fire most.")
@output("Web page to write: .html.", required=True)
def draw_map(store: Path, most: int, output: Path) -> None:
    """Draw where STORE's decoders lie, as a page that runs no script."""
    check_page(output)
    opened = open_store(store)
    from tracer.features.map_page import map_page

    write_page(output, map_page(opened, most))


@features.command(
    epilog=examples(
        "tracer features export my.features -o json/",
        "tracer features export my.features -o features/ --to circuit-tracer",
    )
)
@click.argument("store", type=EXISTING)
@click.option(
    "--to",
    type=click.Choice(["neuronpedia", "circuit-tracer", "self-hosted"]),
    default="neuronpedia",
    help="A JSON file a feature, or index.json.gz with a binary file a layer; self-hosted: as "
    "tracer export --to self-hosted numbers features.",
)
@click.option(
    "--features",
    "chosen",
    metavar="L/F,...",
    help="Only these, to neuronpedia.",
    show_default="all",
)
@output("Folder to write.", required=True)
def export(store: Path, to: str, chosen: str | None, output: Path) -> None:
    """Write STORE as files that Neuronpedia or circuit-tracer read."""
    places = None if chosen is None else [place(one) for one in chosen.split(",")]
    opened = open_store(store)
    with progress("Writing features") as advance:
        opened.export(output, to, places, progress=advance)
    say(f"Saved {output}")


@features.command(
    epilog=examples(
        'tracer features differ "The opposite of hot is" "The opposite of day is"',
        "tracer features differ true.txt false.txt --files",
    )
)
@click.argument("prompt")
@click.argument("other")
@model_options
@click.option(
    "--files", is_flag=True, help="PROMPT and OTHER are files of texts, one a line, or JSONL."
)
@click.option("--field", default="text", help="Key that holds the text, with --files.")
@click.option(
    "--reading",
    type=click.Choice(["max", "mean"]),
    default="max",
    help="Of a text, over its tokens, with --files.",
)
@click.option("--weaker", is_flag=True, help="Those too that fire on OTHER, if less.")
@click.option("--limit", type=POSITIVE, default=20, help="At most so many.")
def differ(prompt: str, other: str, files: bool, weaker: bool, limit: int, **options: Any) -> None:
    """List features that fire on PROMPT and not on OTHER.

    With --files, those that differ most between two sets of texts: effect size (Cohen's d), AUROC,
    p-value, and q, the p-value corrected for the number of features (Benjamini and Hochberg).
    """
    if files:
        differ_sets(Path(prompt), Path(other), limit, options)
        return
    for name in ("field", "reading"):
        options.pop(name)
    model = load_model(options)
    found = tracer.differing(model, prompt, other, silent=not weaker, limit=limit)
    print_differing(model, prompt, found)


def endpoint_of(store: Path, options: dict[str, Any]) -> "Endpoint | None":
    """Take --endpoint, --model-name and --budget out of `options`."""
    url, name, budget = (options.pop(key) for key in ("endpoint", "model_name", "budget"))
    if (url is None) != (name is None):
        raise click.UsageError(
            "--endpoint and --model-name need each other", click.get_current_context()
        )
    if url is None:
        return None
    from tracer.features.labels.endpoint import Endpoint

    return Endpoint(url, name, store.with_name(f"{store.name}.answers"), budget)


def classes_of(path: Path | None) -> dict[str, list[str]] | None:
    """Read --classes."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Failure(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict) or not all(
        isinstance(words, list) and all(isinstance(word, str) for word in words)
        for words in found.values()
    ):
        raise Failure(f'{path}: expected words by class, as in {{"a month": ["May", "June"]}}')
    return found


def check_page(path: Path) -> None:
    """Refuse a name that no browser takes for a page, before the work is done."""
    if path.suffix not in (".html", ".htm"):
        raise Failure(f"cannot write {path}: expected a suffix of .html")


def write_page(path: Path, text: str) -> None:
    """Write a page, whole or not at all, and say so."""
    from graphs.exchange.files import writing

    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    say(f"Saved {path}")


def open_store(path: Path | None) -> "FeatureStore":
    """The store that was named, or the one beside the embedded dictionary."""
    return tracer.FeatureStore.load(embedded_store() if path is None else path)


def embedded_store() -> Path:
    """Where the embedded dictionary's own store stands."""
    import replacement_models

    return Path(replacement_models.__file__).parent / "tiny" / "clt.features"


def place(text: str) -> tuple[int, int]:
    """Read `2/311`."""
    layer, _, feature = text.partition("/")
    if not (layer.isdecimal() and feature.isdecimal() and len(text) < 20):
        raise click.UsageError(f"{text!r} is not L/F, as in 2/311", click.get_current_context())
    return int(layer), int(feature)
