"""The largest weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from expunge.data.request import Request
from expunge.subjects.subject import Subject
from expunge.training.selections.base import SELECTIONS, Scored, Share

__all__ = ["Magnitude"]


@SELECTIONS.register("magnitude", unit="weight", cost="none", source="")
@dataclass(frozen=True, kw_only=True)
class Magnitude(Scored):
    """The weights with the largest |θ|: a baseline that sees no data; take the share it is compared with."""

    share: Share

    def scores(
        self, subject: Subject, request: Request, names: Collection[str], seed: int
    ) -> dict[str, Tensor]:
        return {n: p.detach().abs() for n, p in subject.model.named_parameters() if n in names}
