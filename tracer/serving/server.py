"""The server of `tracer view`: five addresses, none of which names a file.

GET  /                            the page
GET  /api/graphs/N                graph N, packed
POST /api/graphs/N/save           labels, groups and view, written back
POST /api/graphs/N/what-if        the model's answer under changed features
GET  /favicon.ico                 nothing
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from graphs import GraphError
from graphs.viewer.page import page, policy
from replacement_models.errors import ModelError
from tracer.errors import TraceError
from tracer.serving.access import ADDRESS, TOKEN_HEADER, Access
from tracer.serving.served import Served
from tracer.serving.what_if import WhatIf

LARGEST = 1 << 22
"""Bytes of a request's body at most."""
PATIENCE = 60
"""Seconds that a connection may be silent."""
API = re.compile(r"/api/graphs/(\d{1,4})(/save|/what-if)?", re.ASCII)
OURS = (GraphError, ModelError, TraceError)


class RefusedError(Exception):
    """A request that gets another answer than it asked for."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


@dataclass
class Viewing:
    """What one server shows."""

    graphs: Sequence[Served]
    opening: dict[str, float] = field(default_factory=lambda: {"nodes": 0.8, "edges": 0.98})
    what_if: WhatIf | None = None
    saving: Lock = field(default_factory=Lock)

    def page(self, token: str) -> bytes:
        """The page, which asks for the graphs itself."""
        settings = {
            "token": token,
            "graphs": [one.path.name for one in self.graphs],
            "model": self.what_if is not None,
        }
        return page([], ", ".join(one.path.name for one in self.graphs), settings, connect=True)

    def graph(self, number: int) -> Served:
        """One of the graphs.

        Raises:
            RefusedError: there is none of this number.
        """
        if number >= len(self.graphs):
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no graph {number}")
        return self.graphs[number]


class Server(ThreadingHTTPServer):
    """Answers on loopback only, each request in a thread of its own."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, viewing: Viewing, port: int = 0) -> None:
        super().__init__((ADDRESS, port), Handler)
        self.viewing = viewing
        self.access = Access(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away in the middle of an answer."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tracer", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Answer with the page or a graph."""
        self.answered(self.get)

    def do_POST(self) -> None:
        """Save, or ask the model."""
        self.answered(self.post)

    def answered(self, act: Any) -> None:
        """Do what is asked, or say in one line why not."""
        try:
            status, kind, content = act()
        except RefusedError as refused:
            self.close_connection = True
            status, kind, content = refused.status, "text/plain", refused.why.encode()
        except OURS as error:
            status, kind = HTTPStatus.UNPROCESSABLE_ENTITY, "text/plain"
            content = " ".join(str(error).splitlines()).encode("utf-8", "replace")
        except Exception as error:
            self.close_connection = True
            status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain"
            content = f"this is a fault of tracer: {type(error).__name__}".encode()
        self.send(status, kind, content)

    def get(self) -> tuple[HTTPStatus, str, bytes]:
        """The page or a graph."""
        where = urlsplit(self.path)
        if where.path == "/favicon.ico":
            return HTTPStatus.NO_CONTENT, "image/x-icon", b""
        if where.path == "/":
            given = parse_qs(where.query).get("token", [None])
            self.check(given[0])
            found = self.server.viewing.page(self.server.access.token)
            return HTTPStatus.OK, "text/html; charset=utf-8", found
        served, act = self.named()
        if act:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "expected POST")
        content = served.packed(self.server.viewing.opening)
        return HTTPStatus.OK, "application/octet-stream", content

    def post(self) -> tuple[HTTPStatus, str, bytes]:
        """Save, or ask the model."""
        served, act = self.named()
        wanted = self.body()
        viewing = self.server.viewing
        if act == "/save":
            with viewing.saving:
                served.save(wanted)
            return HTTPStatus.OK, "application/json", b"{}"
        if act != "/what-if":
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET")
        if viewing.what_if is None:
            raise TraceError("no model is loaded: start tracer view with --model and --transcoders")
        found = viewing.what_if.answer(served.graph(), wanted)
        return HTTPStatus.OK, "application/json", json.dumps(found, allow_nan=False).encode()

    def named(self) -> tuple[Served, str]:
        """The graph that an address names, and what to do with it.

        Returns:
            The graph, and `/save`, `/what-if` or nothing.

        Raises:
            RefusedError: the caller may not ask, or nothing is there.
        """
        self.check(self.headers.get(TOKEN_HEADER))
        found = API.fullmatch(urlsplit(self.path).path)
        if found is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "nothing is there")
        return self.server.viewing.graph(int(found[1])), found[2] or ""

    def check(self, token: str | None) -> None:
        """Refuse who may not ask.

        Raises:
            RefusedError: no token, another host, another site.
        """
        if why := self.server.access.refusal(dict(self.headers), token):
            raise RefusedError(HTTPStatus.FORBIDDEN, why)

    def body(self) -> object:
        """The JSON that was sent.

        Raises:
            RefusedError: it has no length, is too large, or is no JSON.
        """
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdigit()) or self.headers.get("Transfer-Encoding"):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected a body of a stated length")
        if len(length) > 12 or int(length) > LARGEST:
            why = f"the body has more than {LARGEST} bytes"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the body is no JSON") from error

    def send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        """Write an answer, with what keeps other pages away from it."""
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": f"{policy(connect=True)}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""
