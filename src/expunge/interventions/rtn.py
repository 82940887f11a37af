"""Rounding to the nearest point of a grid."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.data.request import Request
from expunge.interventions.base import INTERVENTIONS, Quantize
from expunge.interventions.rounding import quantize_
from expunge.subjects.subject import Subject


@INTERVENTIONS.register("rtn", family="quantize", needs=[], source="Zhang et al. 2024, arXiv 2410.16454")
@dataclass(frozen=True, kw_only=True)
class RTN(Quantize):
    """Round every weight to the nearest point of its group's grid; nothing is calibrated.

    ŵ = s·clip(round(w/s)), s = max|w|/(2^(b−1) − 1) over the group.
    """

    def change(self, work: Subject, request: Request, seed: int) -> None:
        quantize_(work.model, self.bits, "group" if self.group else "row", group=self.group)
