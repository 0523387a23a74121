"""One HTML file that shows graphs, opens from disk and asks the network for nothing.

Its own policy lets the browser run and style exactly what was written here (by hash) and load
nothing; no text of a graph is ever markup (`require-trusted-types-for` makes the browser refuse).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from typing import Any

import pyarrow as pa

from graphs.viewer import modules
from graphs.viewer.payload import Beside, Extras, pack
from graphs.viewer.thresholds import MOST_EDGES, strongest_edges


def document(nodes: pa.Table, edges: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    """A graph as a page, with the groups in its metadata; of a large one the strongest edges.

    Returns:
        HTML in UTF-8, the same bytes for the same graph.
    """
    nodes, edges, held = strongest_edges(nodes, edges, MOST_EDGES)
    about = {name: value for name, value in metadata.items() if name != "groups"}
    extras = Extras(held=held, beside=Beside(groups=metadata.get("groups", ())))
    return page([pack(nodes, edges, about, extras)], str(metadata.get("prompt", "")))


def page(
    payloads: Sequence[bytes],
    title: str,
    settings: Mapping[str, Any] | None = None,
    connect: bool = False,
) -> bytes:
    """The HTML around packed graphs.

    Args:
        payloads: what `pack` gave, one a graph; the first is shown.
        title: of the page.
        settings: for modules/app.mjs: a server's token, the graphs it has.
        connect: whether the page may talk to the server it is from.

    Returns:
        HTML in UTF-8.
    """
    code = f"(() => {{\n{modules.script('page')}page$.start();\n}})();\n"
    style = modules.style()
    graphs = "\n".join(
        f'<script type="application/octet-stream" class="tracer-graph">'
        f"{base64.b64encode(payload).decode()}</script>"
        for payload in payloads
    )
    given = json.dumps(dict(settings or {})).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(connect)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title) or 'tracer'}</title>\n<style>{style}</style></head>\n<body>\n"
        '<div class="tracer-viewer" id="viewer"><p class="loading">Reading the graph …</p>\n'
        "<noscript>This page draws the graph with a script of its own; nothing else is run."
        "</noscript></div>\n"
        f'<script type="application/json" id="tracer-settings">{given}</script>\n'
        f"{graphs}\n<script>{code}</script>\n</body></html>\n"
    ).encode("utf-8", "replace")


def policy(connect: bool = False) -> str:
    """The content-security policy of a page.

    Returns:
        Directives, of which the hashes name the one script and the one style sheet of the page.
    """
    code = f"(() => {{\n{modules.script('page')}page$.start();\n}})();\n"
    hashes = [_hash(text) for text in (code, modules.style())]
    parts = [
        "default-src 'none'",
        f"script-src '{hashes[0]}'",
        f"style-src '{hashes[1]}'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return "; ".join([*parts, "connect-src 'self'"] if connect else parts)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"
