"""Requests to the viewer's server, as a page that is not ours would send them."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.attacks.graph_files import sample
from benchmarks.attacks.trial import Attack, mutated_bytes, mutated_json, require
from graphs import AttributionGraph
from tracer.serving.served import Served
from tracer.serving.server import Server, Viewing

PATHS = (
    "/api/graphs/0/save",
    "/api/graphs/0/what-if",
    "/api/graphs/0",
    "/",
    "/api/graphs/1",
    "/api/graphs/99999/save",
    "/../../etc/passwd",
    "/api/graphs/0/save?x=1",
)


def odd_requests(rng: np.random.Generator, place: Path) -> Iterator[Attack]:
    """Requests: answered with a status that says no, or what is then on disk loads."""
    graph = sample()
    graph.save(place / "g")
    ids = graph.nodes["id"].to_pylist()
    good: dict[str, Any] = {
        "labels": {ids[4]: "a label"},
        "groups": [{"name": "a", "members": [ids[4]], "place": [1, 2]}],
        "view": {"pins": [ids[4]], "nodes": 0.8},
    }
    change = {"mode": "free", "changes": [{"layer": 0, "position": 1, "feature": 2, "value": 0}]}
    server = Server(Viewing([Served(place / "g")]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.daemon = True
    thread.start()

    def attack() -> None:
        path = PATHS[int(rng.choice(len(PATHS), p=[0.6, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05]))]
        said = mutated_json(rng, change if path.endswith("what-if") else good)
        body = json.dumps(said).encode()
        if rng.random() < 0.2:
            body = mutated_bytes(rng, body)
        headers = {
            "Host": f"127.0.0.1:{server.access.port}",
            "X-Tracer-Token": server.access.token,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        if rng.random() < 0.15:
            name = list(headers)[int(rng.integers(len(headers)))]
            headers[name] = str(rng.choice(["", "x", "-1", "99999999999999", "\u00b2"]))
        status, answer = asked(server.access.port, path, body, headers)
        require(status != 500, f"status 500: {answer[:100]!r}")
        AttributionGraph.load(place / "g")
        if status >= 400:
            require(answer.count(b"\n") == 0, "a refusal of several lines")
            raise click.ClickException("refused")

    try:
        while True:
            yield attack
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(port: int, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and content of an answer; a server that hangs up has failed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except TimeoutError:
        return 408, b""  # fewer bytes than announced: the server waits for the rest
    finally:
        connection.close()
