"""A range of decoder blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject
from expunge.training.selections.base import SELECTIONS, Mask, Selection

__all__ = ["Layers"]


@SELECTIONS.register("layers", unit="block", cost="none", source="")
@dataclass(frozen=True, kw_only=True)
class Layers(Selection):
    """Blocks `first` to `last`, both included; from 0, negative ones from the end. No embeddings, no head."""

    first: int = 0
    last: int = -1

    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        stack = blocks(subject.model)
        count = len(stack)
        first, last = (i + count if i < 0 else i for i in (self.first, self.last))
        if not 0 <= first <= last < count:
            what = f"{self.first} to {self.last} is no range of the {count} blocks"
            raise ConfigError(Problem("selection.layers", what, f"Blocks are 0 to {count - 1}"))
        path = next(name for name, module in subject.model.named_modules() if module is stack)
        starts = tuple(f"{path}.{i}." for i in range(first, last + 1))
        return {name: True for name in names if name.startswith(starts)}
