"""Pruning the smallest weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.data.request import Request
from expunge.interventions.base import INTERVENTIONS, Prune
from expunge.interventions.pruning import magnitude_prune_
from expunge.subjects.subject import Subject


@INTERVENTIONS.register("magnitude", family="prune", needs=[], source="Han et al. 2015, arXiv 1506.02626")
@dataclass(frozen=True, kw_only=True)
class Magnitude(Prune):
    """Set the smallest weights of every matrix to zero; nothing is calibrated and no other weight moves."""

    keeps_codes: ClassVar[bool] = True

    def change(self, work: Subject, request: Request, seed: int) -> None:
        magnitude_prune_(work.model, self.sparsity)
