"""What can go wrong, drawn as a tree.

ExpungeError
├── InputError            the user's input; exit code 2
│   ├── ConfigError       the recipe or the command line
│   ├── DataError         a data file or a split
│   ├── ModelError        a model folder, a tokenizer, an architecture
│   ├── MissingDependency an optional package; the message is the pip line
│   └── Unsupported       a subject cannot do what was asked of it
├── NotComputable         a number that does not exist here, with its reason
└── BarMissed             the run finished, a stated bar was not met; exit code 3
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

__all__ = [
    "BarMissed",
    "ConfigError",
    "DataError",
    "ExpungeError",
    "InputError",
    "MissingDependency",
    "ModelError",
    "NotComputable",
    "Problem",
    "Unsupported",
    "nearest",
    "require",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it is, what it is, what to do about it."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.fix}" if self.fix else text


class ExpungeError(Exception):
    """Root of everything expunge raises on purpose."""

    exit_code = 1


class InputError(ExpungeError):
    """Bad input: all problems of one kind at once, each with where, what and what to do."""

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[Problem]):
        if isinstance(problems, str):
            problems = [Problem("", problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: Sequence[Problem] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ConfigError(InputError):
    """The recipe or the command line."""


class DataError(InputError):
    """A data file or a split."""


class ModelError(InputError):
    """A model folder, a tokenizer or an architecture."""


class MissingDependency(InputError):
    """An optional package is not installed."""


class Unsupported(InputError):
    """A subject cannot do what was asked of it."""


class NotComputable(ExpungeError):
    """A number that does not exist here; the message is the reason shown in its place."""


class BarMissed(ExpungeError):
    """The run finished, but a stated bar (utility, forgetting) was not met."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known names as a sentence, for the `fix` of a problem.

    >>> nearest("nop", ["npo", "rmu"])
    'Did you mean npo? Known: npo, rmu'
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Known: {', '.join(known)}"


def require(module: str, package: str | None = None, why: str = "") -> ModuleType:
    """Import an optional module, or raise MissingDependency with the exact pip line."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise MissingDependency(
            Problem(why or module, f"the package {name} is not installed", f"Run: pip install {name}")
        ) from error
