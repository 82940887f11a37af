"""The contract of a selection: which weights are trained; all others stay bit-identical.

A mask maps a parameter's name to True (the whole tensor) or to a boolean tensor of its shape. Masks are
computed once at θ_o, can be saved, and any method trains inside them. Tied weights have one name, so they
share one mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from torch import Tensor

from expunge.errors import DataError, ExpungeError, Problem
from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from expunge.data.records import Record
    from expunge.data.request import Request
    from expunge.subjects.subject import Subject

__all__ = ["SELECTIONS", "Mask", "Scored", "Selection", "Share", "intersect", "keep_largest", "retain_of"]

SELECTIONS: Registry[Selection] = Registry("selection", "expunge.training.selections", "SELECTIONS")

Mask = Mapping[str, "Tensor | bool"]
"""Parameter name → True or a boolean tensor of its shape; names that are missing are not trained."""

Share = Annotated[float, Gt(0), Le(1)]


class Selection(ABC):
    """A frozen dataclass of settings; `select` computes the mask."""

    name: ClassVar[str]
    card: ClassVar[Card]

    @abstractmethod
    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        """The mask among these parameters. Deterministic; the subject is not changed."""


class Scored(Selection):
    """Keeps the `share` of all weights with the largest score: one threshold for all tensors."""

    share: Share

    @abstractmethod
    def scores(
        self, subject: Subject, request: Request, names: Collection[str], seed: int
    ) -> dict[str, Tensor]:
        """A score ≥ 0 of each weight, in the order of the model's parameters."""

    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        return keep_largest(self.scores(subject, request, names, seed), self.share)


def intersect(one: Mask, other: Mask) -> dict[str, Tensor | bool]:
    """What both select, in the order of the first."""
    both: dict[str, Tensor | bool] = {}
    for name in one:
        if name in other:
            a, b = one[name], other[name]
            both[name] = b if a is True else a if b is True else a & b
    return both


def retain_of(request: Request, selection: Selection) -> Sequence[Record]:
    """The retain records. Raises DataError where there are none."""
    if not request.retain:
        fix = "Bring a retain set, or use salun"
        raise DataError(Problem(f"selection.{selection.name}", "needs retain records", fix))
    return request.retain


def keep_largest(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor | bool]:
    """The round(share·N) largest of all N scores (≥ 0), at least one; of equal ones the first.

    Whole tensors come back as True, empty ones not at all.
    """
    if broken := [name for name, s in scores.items() if not ((s >= 0) & s.isfinite()).all()]:
        raise ExpungeError(f"the scores of {', '.join(broken[:3])} are not finite. Check the model")
    keys = {name: s.float().abs().contiguous().view(torch.int32) for name, s in scores.items()}  # no −0
    total = sum(key.numel() for key in keys.values())
    threshold, ties = _cut(list(keys.values()), max(1, round(share * total)))
    mask: dict[str, Tensor | bool] = {}
    for name, key in keys.items():
        kept = key > threshold
        equal = (key == threshold).reshape(-1).nonzero()[:ties, 0]
        kept.view(-1)[equal] = True
        ties -= len(equal)
        if kept.any():
            mask[name] = True if kept.all() else kept
    return mask


def _cut(keys: Sequence[Tensor], count: int) -> tuple[int, int]:
    """The count-th largest key, and how many of the keys equal to it are among the `count` largest.

    The bits of floats ≥ 0 sort as the floats do. They are counted by upper half, then by lower half: exact,
    and no second copy of a large model's scores is sorted.
    """

    def bin_of(place: int, histograms: Sequence[Tensor]) -> tuple[int, int]:
        """The bin that holds the place-th largest, and which place it has there."""
        counts = torch.stack([h.cpu() for h in histograms]).sum(0)
        above = counts.flip(0).cumsum(0).flip(0) - counts  # in the bins beyond each
        found = int(((above < place) & (place <= above + counts)).nonzero())
        return found, place - int(above[found])

    halves = [torch.bincount(k.reshape(-1) >> 16, minlength=1 << 16) for k in keys]
    upper, count = bin_of(count, halves)
    lowers = [k.reshape(-1)[k.reshape(-1) >> 16 == upper] & 0xFFFF for k in keys]
    lower, count = bin_of(count, [torch.bincount(low, minlength=1 << 16) for low in lowers])
    return (upper << 16) + lower, count
