"""An evaluation as a web page: one file without scripts that shows the same offline in years.

Names and text are escaped, and their control characters replaced; the page's own policy lets a
browser load and run nothing at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from graphs import words
from graphs.pictures.charts import bars, lines
from tracer.evaluation.pareto import at_path, pareto_charts
from tracer.features.document import document

Figures = Mapping[str, Any]
LAYER = (
    ("layer", ("layer",)),
    ("features", ("features",)),
    ("error", ("error", "total")),
    ("affine", ("affine_error", "total")),
    ("error, rest", ("error", "rest")),
    ("affine", ("affine_error", "rest")),
    ("error, median", ("error", "median")),
    ("affine", ("affine_error", "median")),
    ("L0", ("l0",)),
    ("dead", ("dead",)),
    ("dense", ("density", "dense")),
    ("alone: KL", ("alone", "kl")),
    ("agreement", ("alone", "agreement")),
    ("CE recovered", ("alone", "recovered")),
)
"""Columns of the table of layers, and where each figure stands."""
SAID = ("kl", "agreement", "cross_entropy", "recovered")
SAID_WORDS = ("KL, nats", "agreement", "CE, nats", "CE recovered")
STAND_INS = {
    "means": "their means",
    "affine": "affine maps, no features",
    "skip": "its linear skip, no features",
}
GRAPHS = {
    "graph": "graph",
    "capped": "graph, capped",
    "skip_alone": "its linear skip alone",
    "affine_alone": "affine maps alone",
}
WIDTHS = ("layer", "split", "stayed", "lost", "new", "absorbed", "missed")


def page(figures: Figures) -> str:
    """A whole HTML document.

    Args:
        figures: as `evaluation.json` holds them.

    Returns:
        HTML in UTF-8, self-contained.
    """
    settings = figures["settings"]
    origin = (
        f"{figures['model']}, {figures['dtype']}; {figures['measured_tokens']:,} tokens measured, "
        f"{figures['fitted_tokens']:,} for baselines, rows of {figures['context']}"
    )
    entries = [*figures["dictionaries"], *figures.get("earlier", ())]
    body = [
        "<h1>What dictionaries are worth</h1>",
        f'<p class="grey">{escape(words.visible(origin))}</p>',
        '<div class="columns">',
        *pareto_charts(entries),
        "</div>",
        *(part for one in figures["dictionaries"] for part in _dictionary(one, settings)),
        *(part for one in figures["widths"] for part in _pair(one)),
        '<p class="grey">Error: share of the variance that is not explained; rest: without the 1 % '
        "of the tokens with the largest outputs; median: of the median token. Affine: the best "
        "affine map of the same input, fitted on other text. Dead: never fired on this text. "
        "Dense: fire at over a tenth of the tokens. CE recovered: share of the cross entropy lost "
        "to means that is won back. Shares are of 1.</p>",
    ]
    return document("Evaluation", body)


def _dictionary(one: Figures, settings: Figures) -> Iterable[str]:
    mean = one["mean"]
    yield f"<h2>{escape(words.visible(one['name']))}</h2>"
    yield (
        f"<p>{escape(one['kind'])}, {one['features']:,} features, {number(mean['l0_total'])} "
        f"active a token in all; dead {number(mean['dead'])}</p>"
    )
    yield '<div class="columns">'
    yield _said(one)
    if one["graphs"]:
        yield _graphs(one["graphs"], settings)
    yield _more(one)
    yield _errors(one["layers"])
    yield _densities(one["layers"])
    yield "</div>"
    rows = [[_shown(at_path(layer, path)) for _, path in LAYER] for layer in one["layers"]]
    rows.append(["mean", "", *(_shown(at_path(mean, path)) for _, path in LAYER[2:])])
    yield table([name for name, _ in LAYER], rows)


def _said(one: Figures) -> str:
    whole = one["replaced"]
    rows = [["the dictionary", *(_shown(whole[name]) for name in SAID)]]
    rows += [
        [words_for, *(_shown(whole["baselines"][name][figure]) for figure in SAID)]
        for name, words_for in STAND_INS.items()
        if name in whole["baselines"]
    ]
    rows.append(["nothing replaced", "0", "1", _shown(whole["cross_entropy_itself"]), "1"])
    return f"<div><h3>All replaced by</h3>{table(['', *SAID_WORDS], rows)}</div>"


def _graphs(found: Figures, settings: Figures) -> str:
    rows = []
    for name, said in GRAPHS.items():
        if found[name] is None:
            continue
        if name == "capped":
            said = f"graph of {settings['capped']} features"
        scores = [found[name].get(score) for score in ("replacement", "completeness")]
        rows.append([said, *map(_spread, scores)])
    title = f"<h3>Graphs, {len(found['prompts'])} prompts</h3>"
    head = ("", "replacement", "completeness")
    return f"<div>{title}{table(head, rows)}</div>"


def _spread(score: Figures | None) -> str:
    if score is None or score["mean"] is None:
        return ""
    return f"{score['mean']:.3f} ({score['least']:.3f} to {score['most']:.3f})"


def _more(one: Figures) -> str:
    rows = []
    if swaps := one["swaps"]:
        rows.append([f"swaps that flip, of {swaps['pairs']}", _shown(swaps["flipped"])])
        if "flipped_by_random_features" in swaps:
            random = _shown(swaps["flipped_by_random_features"])
            rows.append(["with random features", random])
        rows.append(["answer stays", _shown(swaps["kept"])])
    labels = one["labels"]
    if labels and "shown" in labels:
        rows.append(["features with a label", _shown(labels["shown"])])
        rows.append(["with one of F1 0.7 or more", _shown(labels["true"])])
        rows.append(["median F1 of labels", _shown(labels["median_f1_shown"])])
    return f"<div><h3>Features</h3>{table((), rows)}</div>" if rows else ""


def _errors(layers: Sequence[Figures]) -> str:
    """Error without the largest tokens, layer by layer, beside the baseline's."""
    places = [("dictionary", ("error", "rest")), ("affine map", ("affine_error", "rest"))]
    found = {name: [at_path(layer, path) for layer in layers] for name, path in places}
    known = {name: values for name, values in found.items() if any(values)}
    x = ("layer", [layer["layer"] for layer in layers])
    return lines("Error without the top 1 %", x, "share of variance", known)


def _densities(layers: Sequence[Figures]) -> str:
    """How many features fire how often, all layers together."""
    counts = [
        sum(column) for column in zip(*(one["density"]["by_power"] for one in layers), strict=True)
    ]
    bounds = [0.0, *(10.0**power for power in range(-len(counts) + 1, 1))]
    return bars("How often features fire", "features", bounds, counts, "share of tokens, up to")


def _pair(pair: Figures) -> Iterable[str]:
    yield (
        f"<h2>{escape(words.visible(pair['narrow']))} beside "
        f"{escape(words.visible(pair['wide']))}, which is wider</h2>"
    )
    rows = [[_shown(one[name]) for name in WIDTHS] for one in pair["layers"]]
    rows.append(["mean", *(_shown(pair["mean"][name]) for name in WIDTHS[1:])])
    yield table(WIDTHS, rows)
    yield (
        '<p class="grey">Split: features of the narrow one with several children in the wide one '
        "(decoder cosine at least 0.4, and firing at least half the time where the parent fires). "
        "Absorbed: firings where no child fires and one other feature writes its direction.</p>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; names and cells are escaped here, all cells but the first are numbers."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f'<td class="n">{escape(cell)}</td>' for cell in rest)
        lines.append(f"<tr><td>{escape(words.visible(first))}</td>{cells}</tr>")
    return f"<table>{f'<tr>{titles}</tr>' if titles else ''}{''.join(lines)}</table>"


def _shown(value: Any) -> str:
    return "" if value is None else number(value)


def number(value: float) -> str:
    """Three digits; whole numbers as they are."""
    return f"{int(value):,}" if value == int(value) and abs(value) > 1 else f"{value:.3g}"
