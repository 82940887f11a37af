"""Recipes as YAML: read safely, with the line of every key for the error message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from expunge.errors import ConfigError, Problem

__all__ = ["parse_value", "read_recipe_file", "set_path"]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as everyone means it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read_recipe_file(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """(the mapping, line of each key path). Raises ConfigError on bad YAML, double keys or a non-mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            Problem(
                str(path), f"cannot be read: {error}", "Give a YAML file, or write one: expunge init FILE"
            )
        ) from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
        lines: dict[tuple[str, ...], int] = {}
        problems: list[Problem] = []
        _walk(node, (), lines, problems, str(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or "bad YAML"
        raise ConfigError(Problem(where, f"is not valid YAML: {what}")) from error
    if not isinstance(data, dict):
        raise ConfigError(Problem(str(path), "is not a mapping of keys to values", "See: expunge init FILE"))
    if problems:
        raise ConfigError(problems)
    return data, lines


def _walk(
    node: Any, where: tuple[str, ...], lines: dict[tuple[str, ...], int], problems: list[Problem], path: str
) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                problems.append(
                    Problem(
                        f"{path}:{key.start_mark.line + 1} {'.'.join((*where, name))}", "stands there twice"
                    )
                )
            seen.add(name)
            lines[(*where, name)] = key.start_mark.line + 1
            _walk(value, (*where, name), lines, problems, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*where, str(i))] = item.start_mark.line + 1
            _walk(item, (*where, str(i)), lines, problems, path)


def parse_value(text: str) -> Any:
    """A `key=value` override's value, read as YAML; text that is no YAML stands for itself."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        return text


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b.c`; `a.0.b` counts in a list, a plain name becomes {name: …} when a setting of it is given."""
    *parents, last = path.split(".")
    here: Any = data
    for parent in parents:
        inner = here[_at(here, parent)] if _has(here, parent) else None
        if isinstance(inner, str):
            inner = {"name": inner}
        elif not isinstance(inner, dict | list):
            inner = {}
        here[_at(here, parent)] = inner
        here = inner
    here[_at(here, last)] = value


def _has(here: dict[str, Any] | list[Any], key: str) -> bool:
    return key in here if isinstance(here, dict) else True


def _at(here: dict[str, Any] | list[Any], key: str) -> Any:
    """The key, or the place in a list. Raises ConfigError where the list has no such place."""
    if isinstance(here, dict):
        return key
    if key.isdigit() and int(key) < len(here):
        return int(key)
    raise ConfigError(
        Problem(key, f"is no place in a list of {len(here)}", "Count from 0, or give the whole list")
    )
