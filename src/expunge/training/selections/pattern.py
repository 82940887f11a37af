"""Parameters by name."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.subjects.subject import Subject
from expunge.training.selections.base import SELECTIONS, Mask, Selection

__all__ = ["Pattern"]


@SELECTIONS.register("pattern", unit="tensor", cost="none", source="")
@dataclass(frozen=True, kw_only=True)
class Pattern(Selection):
    """Parameters whose name matches a regular expression, as in `mlp.*down_proj`."""

    match: str

    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        try:
            found = {name: True for name in names if re.search(self.match, name)}
        except re.error as error:
            raise ConfigError(Problem("selection.pattern.match", f"{self.match!r}: {error}")) from error
        if not found:
            fix = f"Names look like {', '.join(sorted(names)[:3])}"
            raise ConfigError(Problem("selection.pattern.match", f"{self.match!r} matches no parameter", fix))
        return found
