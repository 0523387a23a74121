"""One feature as a web page: a single file without scripts that shows the same offline in years.

All text of the corpus and of the tokenizer is escaped, and its control characters are replaced; the
page's own policy lets a browser load and run nothing at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

import numpy as np

from graphs import words
from graphs.pictures.charts import bars
from tracer.features.settings import DECILES
from tracer.features.store import Example, Feature, FeatureStore

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;background:#fff;max-width:1080px;
margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}h3{font-size:.9rem;
margin:1rem 0 .2rem;color:#555}p{margin:.2rem 0}.grey{color:#666}
.columns{display:flex;flex-wrap:wrap;gap:1.2rem 2.4rem;align-items:flex-start}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.08rem .7rem .08rem 0;text-align:left;font-weight:normal;vertical-align:top}
th{color:#666}td.n{text-align:right}
.x{margin:.25rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
.x .v{display:inline-block;min-width:4.2rem;color:#666;font-variant-numeric:tabular-nums}
.x b{outline:1.5px solid #222;font-weight:600}
svg{max-width:100%;height:auto}
"""
WARM, COLD = "240,130,20", "40,110,220"
"""Colours of positive and negative activations."""


def page(store: FeatureStore, feature: Feature) -> str:
    """A whole HTML document.

    Args:
        store: where the feature is from; its names are shown for neighbours.
        feature: what to show.

    Returns:
        HTML in UTF-8, self-contained.
    """
    name = f"Feature {feature.layer}/{feature.feature}"
    label = words.visible(feature.label or "")
    body = [
        f"<h1>{name}{f': {escape(label)}' if label else ''}</h1>",
        f'<p class="grey">{escape(_origin(store))}</p>',
        *_statistics(feature),
        '<div class="columns">',
        histogram(feature.histogram, store.about["bins"]) if feature.active else "",
        *_tokens("Fires on", "share", feature.fires_on, feature.fires_on_share),
        *_tokens("Promotes", "deviations", feature.promoted, feature.promoted_score),
        *_tokens("Suppresses", "deviations", feature.suppressed, feature.suppressed_score),
        "</div>",
        '<p class="grey">Share: of its activation in windows drawn at random. Deviations: how far '
        "the token's logit stands from its mean over all features, in standard deviations.</p>",
        *_examples(feature),
        *_neighbours(store, feature),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _origin(store: FeatureStore) -> str:
    about = store.about
    dictionary = about["transcoders"] or "a dictionary in memory"
    counted = f"{about['tokens_counted']:,} tokens counted"
    return words.visible(
        f"{about['model']}, {dictionary} {about['dictionary_hash'][:12]}; {counted}"
    )


def _statistics(feature: Feature) -> Iterable[str]:
    if not feature.active:
        yield "<p><strong>Never active on this corpus.</strong></p>"
        return
    parts = [
        f"active at {feature.active:,} tokens ({words.percent(feature.density)})",
        f"mean when active {feature.mean:.4g}",
        f"maximum {feature.maximum:.4g}",
    ]
    if feature.minimum is not None:
        parts.append(f"minimum {feature.minimum:.4g}")
    yield f"<p>{escape('; '.join(parts))}</p>"


def histogram(counts: Sequence[int], bins: Mapping[str, int]) -> str:
    """Tokens by size of activation as an SVG, cut to the bins that hold any.

    Args:
        counts: a feature's histogram; negative bins, if any, stand behind the others.
        bins: store.json's description of them.
    """
    bounds, held = histogram_bins(counts, bins)
    return bars(
        "Tokens where it is active",
        "tokens",
        bounds,
        held,
        "activation (four bins an octave)",
    )


def histogram_bins(counts: Sequence[int], bins: Mapping[str, int]) -> tuple[list[float], list[int]]:
    """A histogram cut to the bins that hold any tokens.

    Args:
        counts: a feature's histogram, not all 0; negative bins, if any, stand behind the others.
        bins: store.json's description of them.

    Returns:
        Bounds of the bins, one more than there are, in units of the activation, rising; and the
        tokens in each.
    """
    steps = np.arange(bins["octaves"] * bins["parts"] + 1)
    parts = bins["parts"]
    sizes = 2.0 ** (bins["lowest_power"] + steps // parts) * (1 + (steps % parts) / parts)
    positive, negative = list(counts[: len(steps) - 1]), list(counts[len(steps) - 1 :])
    bounds = [*-sizes[::-1], *sizes] if negative else [*sizes]
    every = [*negative[::-1], 0, *positive] if negative else positive
    held = np.flatnonzero(every)
    first, last = int(held[0]), int(held[-1]) + 1
    return [float(bound) for bound in bounds[first : last + 1]], every[first:last]


def _tokens(
    title: str, unit: str, tokens: Sequence[str], weights: Sequence[float]
) -> Iterable[str]:
    rows = [
        f'<tr><td>{escape(words.token(token))}</td><td class="n">{weight:.2f}</td></tr>'
        for token, weight in zip(tokens, weights, strict=True)
    ]
    shown = "".join(rows) or "<tr><td>nothing</td></tr>"
    yield f"<div><h2>{title}</h2><table><tr><th>token</th><th>{unit}</th></tr>{shown}</table></div>"


def _examples(feature: Feature) -> Iterable[str]:
    most = max((abs(one.activation) for one in feature.examples), default=0) or 1
    titles = {"top": "Strongest examples", "bottom": "Most negative examples"}
    for kind, found in groupby(feature.examples, key=lambda one: one.kind):
        if kind in titles:
            yield f"<h2>{titles[kind]}</h2>"
            yield from (_example(one, most) for one in found)
            continue
        yield "<h2>Examples by decile of activation</h2>"
        by_decile = groupby(sorted(found, key=lambda one: -one.rank), key=lambda one: one.rank)
        for decile, some in by_decile:
            where = f"{100 * decile // DECILES} to {100 * (decile + 1) // DECILES} %"
            yield f"<h3>{where} of its activations</h3>"
            yield from (_example(one, most) for one in some)


def _example(example: Example, most: float) -> str:
    """What a window holds of the example's document; the token meant has a frame."""
    spans = []
    for at in example.document:
        shown = escape(words.visible(example.texts[at])) or "∅"
        value = example.activations[at]
        colour = WARM if value > 0 else COLD
        strength = min(1.0, abs(value) / most)
        style = f' style="background:rgba({colour},{strength:.2f})"' if value else ""
        title = f' title="{value:.4g}"' if value else ""
        mark = "b" if at == example.position else "span"
        plain = not style and mark == "span"
        spans.append(shown if plain else f"<{mark}{style}{title}>{shown}</{mark}>")
    text = "".join(spans).strip()
    return f'<div class="x"><span class="v">{example.activation:.4g}</span>{text}</div>'


def _neighbours(store: FeatureStore, feature: Feature) -> Iterable[str]:
    titles = {
        "inputs": ("Reads from", "virtual weight"),
        "outputs": ("Writes to", "virtual weight"),
        "similar": ("Writes alike", "cosine"),
        "together": ("Fires with", "share"),
    }
    yield '<div class="columns">'
    for column, (title, unit) in titles.items():
        rows = [
            f"<tr><td>{one['layer']}/{one['feature']}</td>"
            f"<td>{escape(words.clipped(store.name(one['layer'], one['feature']), 40))}</td>"
            f'<td class="n">{one["weight"]:.3g}</td></tr>'
            for one in getattr(feature, column)
        ]
        if rows:
            yield (
                f"<div><h2>{title}</h2><table><tr><th>feature</th><th></th><th>{unit}</th></tr>"
                f"{''.join(rows)}</table></div>"
            )
    yield "</div>"
    yield (
        '<p class="grey">Virtual weights are products of decoder and encoder rows at one position, '
        "norms' denominators left out; attention takes no part. Shares are of the sampled tokens "
        "at which this feature fires.</p>"
    )
