"""The `.pt` graphs of circuit-tracer, as tables.

A dense matrix over features, errors (a layer after another), tokens and targets; see circuit-tracer
`graph.py`. The file has token ids but not their text, which the model's tokenizer knows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from graphs.exchange.attribution_import import Imported
from graphs.exchange.torch_zip import Record, read_torch_zip
from graphs.schema import GIVEN, GraphError

TENSORS = {
    "adjacency_matrix": 2, "active_features": 2, "selected_features": 1, "activation_values": 1,
    "logit_probabilities": 1, "input_tokens": 1,
}  # fmt: skip
"""Name -> dimensions."""


def read_circuit_tracer_pt(
    content: bytes, token_text: Callable[[int], str] | None = None
) -> Imported:
    """A graph from the bytes of a `.pt` file, without running anything in it.

    Args:
        content: of the file.
        token_text: the text of a vocabulary id; None: tokens are named by id, as [1027].

    Returns:
        Its nodes, effects and metadata.

    Raises:
        GraphError: it is no such file, or holds what is not read; one line.
    """
    value = read_torch_zip(content)
    if not isinstance(value, dict):
        raise GraphError("no graph of circuit-tracer: expected a dict of tensors")
    held = {name: _tensor(value, name, rank) for name, rank in TENSORS.items()}
    layers = _layers(value.get("cfg"))
    tokens = held["input_tokens"].astype(np.int64).tolist()
    targets = _targets(value.get("logit_targets", value.get("logit_tokens")))
    named = token_text or "[{}]".format
    rows = _rows(held, layers, tokens, [(text or named(token), token) for text, token in targets])
    for row in rows[-len(targets) - len(tokens) : -len(targets)]:
        row["text"] = named(row["token"])
    matrix = held["adjacency_matrix"]
    if matrix.shape != (len(rows), len(rows)):
        raise GraphError(f"adjacency_matrix has shape {matrix.shape}, expected {(len(rows),) * 2}: "
                         "a row and column for every feature, error, token and target")  # fmt: skip
    order = sorted(range(len(rows)), key=lambda at: (rows[at].pop("rank"), at))
    effect = sparse.csr_array(matrix[np.ix_(order, order)].astype(np.float32))
    rows = [rows[at] for at in order]
    columns = {name: [row.get(name) for row in rows] for name in GIVEN}
    about = {
        "prompt": _text(value.get("input_string")),
        "tokens": [named(token) for token in tokens],
        "token_ids": tokens,
        "model": _model(value.get("cfg")),
        "transcoders": _text(value.get("scan")),
        "layers": layers,
        "imported": {"from": "circuit-tracer .pt"},
    }
    note = (
        "the file holds token ids without text: columns are named by id, as [1027] (--model FOLDER "
        "takes their text from the model's tokenizer)"
    )
    return Imported(columns, effect, about, (), [], [] if token_text else [note], whole=False)


def _tensor(value: dict[Any, Any], name: str, rank: int) -> np.ndarray:
    found = value.get(name)
    if not isinstance(found, np.ndarray) or found.ndim != rank:
        raise GraphError(f"no graph of circuit-tracer: expected a tensor {name} of {rank} "
                         "dimensions")  # fmt: skip
    if not np.isfinite(found).all():
        raise GraphError(f"{name} holds numbers that are not finite")
    return found


def _config(held: object) -> dict[str, Any]:
    values = held.values if isinstance(held, Record) else held
    return values if isinstance(values, dict) else {}


def _layers(held: object) -> int:
    layers = _config(held).get("n_layers")
    if not isinstance(layers, int) or not 0 < layers < 10_000:
        raise GraphError(f"its cfg has n_layers {layers!r:.40}: expected a number of layers")
    return layers


def _model(held: object) -> str:
    config = _config(held)
    return _text(config.get("tokenizer_name")) or _text(config.get("model_name"))


def _text(held: object) -> str:
    """Texts as they are, of a list one after the other; nothing for anything else."""
    every = held if isinstance(held, list | tuple) else [held]
    return ", ".join(one for one in every if isinstance(one, str))


def _targets(held: object) -> list[tuple[str | None, int]]:
    """Text and vocabulary id of each target; older files have ids alone."""
    if isinstance(held, np.ndarray) and held.ndim == 1 and np.isfinite(held).all():
        return [(None, int(number)) for number in held]
    found = []
    for one in held if isinstance(held, list) else []:
        pair = one.values if isinstance(one, Record) else one
        if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], int):
            found.append((str(pair[0]) or None, pair[1]))
    if not found:
        raise GraphError("no graph of circuit-tracer: expected logit_targets")
    return found


def _rows(
    held: dict[str, np.ndarray],
    layers: int,
    tokens: list[int],
    targets: list[tuple[str, int]],
) -> list[dict[str, Any]]:
    """Nodes in the order of the matrix, each with what ours are ordered by."""
    chosen = held["selected_features"].astype(np.int64)
    active, values = held["active_features"], held["activation_values"]
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < min(len(active), len(values)):
        raise GraphError("selected_features names features that active_features does not have")
    if len(held["logit_probabilities"]) != len(targets):
        raise GraphError("logit_probabilities and logit_targets differ in length")
    positions, last = len(tokens), len(tokens) - 1
    rows: list[dict[str, Any]] = []
    for layer, position, feature, value in zip(
        *active[chosen].astype(np.int64).T.tolist(), values[chosen].tolist(), strict=True
    ):
        rows.append({
            "kind": "feature", "id": f"{layer}_{feature}_{position}", "layer": layer,
            "position": position, "feature": feature, "activation": value, "rank": (layer, 0),
        })  # fmt: skip
    rows += [
        {"kind": "error", "id": f"{layer}_-1_{position}", "layer": layer, "position": position,
         "rank": (layer, 1)}
        for layer in range(layers)
        for position in range(positions)
    ]  # fmt: skip
    rows += [
        {"kind": "embedding", "id": f"E_{token}_{position}", "layer": -1, "position": position,
         "token": token, "rank": (-1, 0)}
        for position, token in enumerate(tokens)
    ]  # fmt: skip
    chances = held["logit_probabilities"].astype(np.float64).tolist()
    rows += [
        {"kind": "logit", "id": f"{layers + 1}_{token}_{last}", "layer": layers, "position": last,
         "token": token, "text": text, "probability": chance, "rank": (layers, 0)}
        for (text, token), chance in zip(targets, chances, strict=True)
    ]  # fmt: skip
    return rows
