"""Pruning by weight and activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.data.request import Request
from expunge.interventions.base import INTERVENTIONS, Count, Prune, calibration_rows
from expunge.interventions.pruning import wanda_prune_
from expunge.subjects.subject import Subject


@INTERVENTIONS.register("wanda", family="prune", needs=["retain"], source="Sun et al. 2023, arXiv 2306.11695")
@dataclass(frozen=True, kw_only=True)
class Wanda(Prune):
    """Set the weights to zero that weigh least with the activations they meet; no other weight moves.

    The smallest |W_ij|·‖x_j‖₂ of every row, norms over retain activations, block after block of the model.
    """

    keeps_codes: ClassVar[bool] = True

    samples: Count = 128

    def change(self, work: Subject, request: Request, seed: int) -> None:
        rows = calibration_rows(work, request, self.samples, self.name)
        wanda_prune_(work, rows, self.sparsity)
