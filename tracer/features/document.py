"""A web page around what it shows: one file that runs nothing and fetches nothing."""

from collections.abc import Iterable
from html import escape

from graphs import words
from tracer.features.store import FeatureStore

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


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A page with our style and policy around what it shows.

    Args:
        title: escaped here.
        body: HTML, escaped already.
        style: more of a style sheet.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def origin(store: FeatureStore) -> str:
    """Model, dictionary and corpus in a line, as plain text."""
    about = store.about
    dictionary = about["transcoders"] or "a dictionary in memory"
    counted = f"{about['tokens_counted']:,} tokens counted"
    return words.visible(
        f"{about['model']}, {dictionary} {about['dictionary_hash'][:12]}; {counted}"
    )
