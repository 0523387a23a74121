"""`tracer cluster`: prompts of a dataset in clusters by their graphs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tracer
from tracer.commands.options import COUNT, EXISTING, examples, json_option
from tracer.commands.say import say
from tracer.commands.tables import print_table

if TYPE_CHECKING:
    from tracer import Clusters


@click.command(
    epilog=examples(
        "tracer cluster many.graphs --clusters 4",
        "tracer cluster many.graphs --clusters 4 --group-by language --by features",
    )
)
@click.argument("dataset", metavar="DATASET", type=EXISTING)
@click.option(
    "--clusters", "count", type=COUNT, default=2, metavar="K", help="How many, 2 or more."
)
@click.option(
    "--by",
    type=click.Choice(["influence", "features"]),
    default="influence",
    help="What features carry, rare ones before common; or which there are, Jaccard index.",
)
@click.option(
    "--group-by",
    metavar="COLUMN",
    help="Column of the table of prompts that the clusters are held against.",
    show_default="none",
)
@click.option(
    "--align",
    type=click.Choice(["anywhere", "end"]),
    default="anywhere",
    help="A feature is the same wherever it fires, or only as far from the end.",
)
@click.option("--top", type=COUNT, default=3, help="Prompts and features named of each cluster.")
@json_option
def cluster(dataset: Path, count: int, top: int, as_json: bool, **options: Any) -> None:
    """Put the prompts of a DATASET into K clusters of graphs that are alike.

    Says what tells each cluster from the rest and, with --group-by, how far the clusters are the
    groups (adjusted Rand index: 1 the same, about 0 by chance). Needs scikit-learn.
    """
    found = tracer.clusters(dataset, count, **options)
    if as_json:
        say(json.dumps(found.to_json()))
        return
    print_clusters(found, top, options["group_by"])


def print_clusters(found: "Clusters", top: int, group_by: str | None) -> None:
    """Print every cluster with its size, groups, prompts and features, then how good they are."""
    from graphs import words

    rows, features = found.prompts.to_pylist(), found.features.to_pylist()
    for number, size in enumerate(found.sizes):
        inside = [row for row in rows if row["cluster"] == number]
        groups = "" if group_by is None else f": {shares_of(inside, group_by)}"
        say(f"cluster {number}, {size} graphs{groups}")
        nearest = sorted(inside, key=lambda row: -row["silhouette"])
        texts = [words.clipped(words.visible(row["text"] or ""), 60) for row in nearest[:top]]
        print_table((), [("prompts", " | ".join(texts))] if texts else [])
        print_table(
            ("feature", "label", "inside", "outside"),
            [
                (
                    f"L{row['layer']}/{row['feature']}",
                    words.label_parts(row["label"])[0],
                    words.percent(row["inside"]),
                    words.percent(row["outside"]),
                )
                for row in [one for one in features if one["cluster"] == number][:top]
            ],
        )
    said = [("silhouette", f"{found.silhouette:.3f} in the mean (1 apart, 0 not)")]
    if found.agreement is not None:
        said.append((f"adjusted Rand index with {group_by}", f"{found.agreement:.3f}"))
    print_table((), said)


def shares_of(rows: list[dict[str, Any]], column: str) -> str:
    """How many rows have each value, the most frequent first."""
    values = [str(row[column]) for row in rows]
    counted = sorted({value: values.count(value) for value in values}.items(), key=lambda p: -p[1])
    return ", ".join(f"{value} {count}" for value, count in counted)
