"""One registry class for methods, metrics, controls, attacks, benchmarks and retain losses.

A registered thing is one class in one file. Its card is written as literals in the decorator, so that
`list` can read it from the source without importing the file (and torch with it):

    @METHODS.register("npo", family="likelihood", ...)
    class NPO: ...

Third-party packages join through an entry point in the group `expunge.<kinds>`, whose value is the module
that holds the decorated class.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from expunge.errors import ConfigError, Problem, nearest

__all__ = ["Card", "Registry", "Search"]

T = TypeVar("T")  # what a registry holds: Method, Metric, …
C = TypeVar("C", bound=type[Any])


@dataclass(frozen=True)
class Search:
    """Annotation of a setting: the range `expunge tune` searches; without numbers the setting stays as it is.

        q: Annotated[float, Search(0.3, 1.0)] = 0.8

    A setting without it is searched around its default, within its own bounds.
    """

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Card:
    """What `list` shows of a registered thing: `summary` is the first docstring line."""

    name: str
    summary: str
    module: str
    fields: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "summary": self.summary, **self.fields}


class Registry(Generic[T]):
    """Named classes of one kind, found in the files of a package and in entry points.

    `variable` is the name under which the files use the registry as decorator (`METHODS`).
    """

    def __init__(self, kind: str, package: str, variable: str):
        self.kind = kind
        self.group = f"expunge.{kind}{'es' if kind.endswith('s') else 's'}"
        self.package = package
        self.variable = variable
        self._live: dict[str, type[T]] = {}
        self._live_cards: dict[str, Card] = {}

    def register(self, name: str, **card: Any) -> Callable[[C], C]:
        """Class decorator. Names are lower case, `rougeL` apart; each stands for one class."""
        plain = name.replace("rougeL", "rougel")  # the field's own spelling
        if plain != plain.lower() or not plain.replace("_", "").isalnum():
            raise ValueError(f"{self.kind} names are lower case letters, digits and _: {name!r}")

        def decorate(cls: C) -> C:
            known = self._live.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (
                cls.__module__,
                cls.__qualname__,
            ):
                raise ValueError(f"{self.kind} {name!r} is already registered by {known.__module__}")
            cls.name = name
            summary = (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""
            self._live[name] = cls
            self._live_cards[name] = Card(name, summary, cls.__module__, card)
            cls.card = self._live_cards[name]
            return cls

        return decorate

    def names(self) -> list[str]:
        return sorted({*self._found, *self._live})

    def cards(self) -> list[Card]:
        """The cards of everything known, without importing any of it."""
        return [self.card(name) for name in self.names()]

    def card(self, name: str) -> Card:
        """The card of `name`, without importing its file. Raises ConfigError with the nearest names."""
        card = self._live_cards.get(name) or self._found.get(name)
        if card is None:
            fix = nearest(str(name), self.names())
            raise ConfigError(Problem(f"{self.kind} {name!r}", "unknown name", fix))
        return card

    def get(self, name: str) -> type[T]:
        """The class registered under `name`; imports its file. Raises ConfigError with the nearest names."""
        if name not in self._live:
            importlib.import_module(self.card(name).module)
        return self._live[name]

    def make(self, name: str, **settings: Any) -> T:
        """The dataclass registered under `name`, built with these settings.

        Raises ConfigError with the nearest names on unknown settings, and on values of another type or range.
        """
        from pydantic import TypeAdapter, ValidationError

        cls = self.get(name)
        known = [f.name for f in fields(cast(Any, cls)) if f.init]
        hint = lambda key: nearest(key, known) if known else "It has none"  # noqa: E731
        unknown = [
            Problem(f"{self.kind} {name!r}", f"no setting {k!r}", hint(k)) for k in settings if k not in known
        ]
        if unknown:
            raise ConfigError(unknown)
        try:
            return TypeAdapter(cls).validate_python(settings)
        except ValidationError as error:
            where = f"{self.kind} {name!r}"
            raise ConfigError(
                [Problem(where, f"{e['loc'][0]} is {e['input']!r}", e["msg"]) for e in error.errors()]
            ) from error

    @cached_property
    def _found(self) -> dict[str, Card]:
        found: dict[str, Card] = {}
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        for file in sorted(folder.rglob("*.py")):
            inner = ".".join(file.relative_to(folder).with_suffix("").parts)
            self._read(file, f"{self.package}.{inner.removesuffix('.__init__')}", found)
        for entry in importlib.metadata.entry_points(group=self.group):
            spec = importlib.util.find_spec(entry.module)
            if spec is not None and spec.origin:
                self._read(Path(spec.origin), entry.module, found)
        return found

    def _read(self, file: Path, module: str, found: dict[str, Card]) -> None:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for call in node.decorator_list:
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Attribute)
                    and call.func.attr == "register"
                    and isinstance(call.func.value, ast.Name)
                    and call.func.value.id == self.variable
                ):
                    name = ast.literal_eval(call.args[0])
                    if name in found:
                        raise ValueError(f"{self.kind} {name!r} is in {found[name].module} and in {module}")
                    card = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
                    doc = ast.get_docstring(node) or ""
                    found[name] = Card(name, doc.strip().splitlines()[0] if doc else "", module, card)
