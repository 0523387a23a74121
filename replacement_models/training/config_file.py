"""A run's configuration from a file or from Python, and a template that names every field."""

import ast
import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from replacement_models.errors import ModelError
from replacement_models.training import config as sections
from replacement_models.training.config import TrainConfig
from replacement_models.training.settings import Section

LARGEST = 1 << 20
"""Bytes of a configuration; more is something else."""


def read_config(given: Any) -> TrainConfig:
    """The configuration that is meant.

    Args:
        given: a `TrainConfig`, fields by name, or the path of a YAML file.

    Returns:
        It, checked.

    Raises:
        ModelError: the file cannot be read, or a field is unknown, of another type or out of
            limits.
    """
    if isinstance(given, TrainConfig):
        return given
    if isinstance(given, dict):
        return TrainConfig.of(given)
    path = Path(given)
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise ModelError(f"{path}: {path.stat().st_size} bytes are no configuration of a run")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: cannot be read as YAML ({reason})") from error
    try:
        return TrainConfig.of({} if found is None else found)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def with_changes(config: TrainConfig, changes: dict[str, str]) -> TrainConfig:
    """A configuration with some fields changed.

    Args:
        config: the others.
        changes: by `section.field`, values as YAML writes them.

    Raises:
        ModelError: no such field, or its value is wrong.
    """
    found = config.as_mapping()
    for name, text in changes.items():
        *section, last = name.split(".")
        place = found
        for part in section:
            place = place.get(part) if isinstance(place, dict) else None  # type: ignore[assignment]
        if not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
            raise ModelError(f"{name}: no such field; tracer train --template names them all")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ModelError(f"{name}: {text!r} is no value as YAML writes them") from error
    return TrainConfig.of(found)


def template() -> str:
    """A configuration in YAML with every field, its default and what it is."""
    return "\n".join(_lines(TrainConfig(), "")) + "\n"


def descriptions(kind: type[Section]) -> dict[str, str]:
    """What stands under each field of a section.

    Returns:
        Text by field.
    """
    [body] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(after, ast.Expr):
            continue
        if isinstance(after.value, ast.Constant) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = " ".join(str(after.value.value).split())
    return found


def _lines(section: Section, indent: str) -> list[str]:
    found, said = [], descriptions(type(section))
    hints = get_type_hints(type(section))
    for one in fields(section):
        value = getattr(section, one.name)
        if is_dataclass(hints[one.name]):
            title = (inspect.getdoc(type(value)) or "").splitlines()[0]
            found += ["", f"# {title}", f"{one.name}:", *_lines(value, indent + "  ")]
            continue
        plain = list(value) if isinstance(value, tuple) else value
        if one.metadata.get("among"):
            said[one.name] += f" ({', '.join(one.metadata['among'])})"
        written = yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()
        found += [f"{indent}# {said[one.name]}", f"{indent}{one.name}: {written}"]
    return found


SECTIONS = tuple(
    value
    for value in vars(sections).values()
    if inspect.isclass(value) and issubclass(value, Section) and value is not Section
)
"""Every section there is."""
