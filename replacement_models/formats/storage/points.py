"""Names that other tools give to places in a model, as read and write points and layers."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from replacement_models.errors import ModelError
from replacement_models.sites import STAGES, ReadPoint, Stage, WritePoint
from replacement_models.transcoder import Transcoder, TranscoderLayer

READ = {
    "hook_resid_mid": ReadPoint.RESIDUAL,
    "hook_mlp_in": ReadPoint.RESIDUAL,
    "ln2.hook_normalized": ReadPoint.NORMED_UNWEIGHTED,
    "mlp.hook_in": ReadPoint.NORMED,
    "mlp.input": ReadPoint.NORMED,
    "mlp.c_fc.input": ReadPoint.NORMED,
    "ln_2.input": ReadPoint.RESIDUAL,
    "ln_2.output": ReadPoint.NORMED,
    "post_attention_layernorm.input": ReadPoint.RESIDUAL,
    "post_attention_layernorm.output": ReadPoint.NORMED,
    "pre_feedforward_layernorm.input": ReadPoint.RESIDUAL,
    "pre_feedforward_layernorm.output": ReadPoint.NORMED,
}
"""Places of TransformerLens (`hook_…`) and of Hugging Face modules, less `blocks.3.`."""
WRITE = {
    "mlp.hook_out": WritePoint.MLP_OUTPUT,
    "hook_mlp_out": WritePoint.POST_NORM,
    "mlp.output": WritePoint.MLP_OUTPUT,
    "mlp.c_proj.output": WritePoint.MLP_OUTPUT,
    "post_feedforward_layernorm.output": WritePoint.POST_NORM,
}
DEEPEST = 10_000
"""Layers of a model: more is a mistake in a name."""
STAGED = {f"hook_{stage.name.lower()}": stage for stage in Stage if stage in range(STAGES)}
"""Places that autoencoders read, in TransformerLens's names."""
LAYERED = re.compile(r"(?:.*\.)?(?:blocks|layers|h)\.(\d+|\{\})\.(.+)")
Point = TypeVar("Point", ReadPoint, WritePoint, Stage)
Found = TypeVar("Found")


def hook_read(transcoder: Transcoder, layer: int) -> str:
    """TransformerLens's name of the place that one layer of a transcoder reads."""
    names = {
        ReadPoint.RESIDUAL: "hook_resid_mid",
        ReadPoint.NORMED_UNWEIGHTED: "ln2.hook_normalized",
        ReadPoint.NORMED: "mlp.hook_in",
    }
    return f"blocks.{layer}.{names[transcoder.read]}"


def hook_written(transcoder: Transcoder, layer: int) -> str:
    """TransformerLens's name of what one layer of a transcoder reconstructs."""
    names = {WritePoint.MLP_OUTPUT: "mlp.hook_out", WritePoint.POST_NORM: "hook_mlp_out"}
    return f"blocks.{layer}.{names[transcoder.write]}"


def placed(name: Any, known: Mapping[str, Point], field: str, path: Path) -> tuple[int, Point]:
    """Layer and point of a full name such as `blocks.3.hook_mlp_out`; layer 0 of a template.

    Args:
        name: as the file has it.
        known: READ or WRITE.
        field: where in the file it stands, for messages.
        path: the file, for messages.

    Raises:
        ModelError: the name is none of those known.
    """
    match = LAYERED.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[2] not in known:
        raise ModelError(
            f"{path}: {field} is {name!r}, expected blocks.N. or layers.N. and one of "
            f"{sorted(known)}"
        )
    return 0 if match[1] == "{}" else int(match[1]), known[match[2]]


def one_of(points: set[Point], field: str, path: Path) -> Point:
    """The point that all layers share.

    Raises:
        ModelError: they do not share one.
    """
    if len(points) != 1:
        names = sorted(point.name.lower() for point in points)
        raise ModelError(
            f"{path}: {field} differs between layers: {', '.join(names)}; "
            "one place for all layers is supported"
        )
    return next(iter(points))


def in_layer_order(found: list[tuple[int, Found]], where: Path) -> list[Found]:
    """What was found for each layer, from layer 0 up.

    Raises:
        ModelError: a layer is missing or there twice.
    """
    layers = sorted(layer for layer, _ in found)
    for expected, layer in enumerate(layers):
        if layer != expected:
            problem = "is missing" if layer > expected else "is there more than once"
            at = min(layer, expected)
            raise ModelError(
                f"{where}: layer {at} {problem} (found layers {layers}); a set has one "
                "transcoder for every layer from 0 up"
            )
    by_layer = dict(found)
    return [by_layer[layer] for layer in layers]


def with_gaps(found: list[tuple[int, TranscoderLayer]], where: Path) -> list[TranscoderLayer]:
    """Per-layer dictionaries from layer 0 up to the last found, empty ones where there is none.

    Raises:
        ModelError: a layer is there twice.
    """
    layers = sorted(layer for layer, _ in found)
    if len(set(layers)) < len(layers):
        twice = next(layer for layer in layers if layers.count(layer) > 1)
        raise ModelError(f"{where}: layer {twice} is there more than once (found layers {layers})")
    if layers[-1] > DEEPEST:
        raise ModelError(f"{where}: has a layer {layers[-1]}, expected at most {DEEPEST}")
    by_layer, like = dict(found), found[0][1].b_dec
    return [
        by_layer[at] if at in by_layer else TranscoderLayer.empty(like, 1)
        for at in range(layers[-1] + 1)
    ]


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file.

    Raises:
        ModelError: it is missing or holds no JSON object.
    """
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # also numbers of 5,000 digits
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def refuse(config: Mapping[str, Any], path: Path, **supported: tuple[Any, ...]) -> None:
    """Refuse a variant by the field that announces it; a field that is absent is fine.

    Raises:
        ModelError: a field has a value that is not among those supported.
    """
    for field, values in supported.items():
        if field in config and config[field] not in values:
            raise ModelError(
                f"{path}: {field} is {config[field]!r}, a variant that is not supported; "
                f"expected {' or '.join(map(repr, values))}"
            )


def holds(path: Path, *fields: str) -> bool:
    """Whether a JSON file is there and has these fields; for recognising a format."""
    try:
        config = read_json(path)
    except ModelError:
        return False
    return all(field in config for field in fields)
