"""The contract of a selection: which weights are trained; all others stay bit-identical.

A mask maps a parameter's name to True (the whole tensor) or to a boolean tensor of its shape. Masks are
computed once at θ_o, can be saved, and any method trains inside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from expunge.data.request import Request
    from expunge.subjects.subject import Subject

__all__ = ["SELECTIONS", "Mask", "Selection", "intersect"]

SELECTIONS: Registry[Selection] = Registry("selection", "expunge.training.selections", "SELECTIONS")

Mask = Mapping[str, "Tensor | bool"]
"""Parameter name → True or a boolean tensor of its shape; names that are missing are not trained."""


class Selection(ABC):
    """A frozen dataclass of settings; `select` computes the mask."""

    name: ClassVar[str]
    card: ClassVar[Card]

    @abstractmethod
    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        """The mask among these parameters. Deterministic; the subject is not changed."""


def intersect(one: Mask, other: Mask) -> dict[str, Tensor | bool]:
    """What both select."""
    both: dict[str, Tensor | bool] = {}
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        both[name] = b if a is True else a if b is True else a & b
    return both
