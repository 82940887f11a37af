"""What reading and checking find: problems, which stop a run, and warnings, which do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from expunge.errors import DataError, Problem

__all__ = ["SHOWN", "Findings", "listing"]

SHOWN = 50
"""How many problems are printed; the rest are counted."""


@dataclass
class Findings:
    """Problems and warnings as they are collected, and where each record came from.

    `origins` maps (split, record id) to a place such as "forget.jsonl:3". No text of a record enters any of
    these: the forget set must not leak through an error message. `broken` names the splits of which some rows
    could not be read, so that nothing is said to be missing from them.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def add(self, where: str, what: str, fix: str = "") -> None:
        self.problems.append(Problem(where, what, fix))

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def raise_problems(self) -> None:
        """Raise one DataError with all problems, if there are any."""
        if not self.problems:
            return
        more = len(self.problems) - SHOWN
        rest = [Problem("", f"... and {more} more problems")] if more > 0 else []
        raise DataError([*self.problems[:SHOWN], *rest])


def listing(names: Sequence[object], most: int = 5) -> str:
    """The first names, and how many more.

    >>> listing(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    head = ", ".join(map(str, names[:most]))
    more = len(names) - most
    return f"{head} and {more} more" if more > 0 else head
