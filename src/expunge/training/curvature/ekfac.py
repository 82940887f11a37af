"""K-FAC's eigenbasis with the eigenvalues measured in it."""

from __future__ import annotations

import torch

from expunge.training.curvature.kfac import KFAC
from expunge.training.curvature.problem import CurvatureProblem, Labels

__all__ = ["EKFAC"]


class EKFAC(KFAC):
    """Λ = Σ_i (Q_Sᵀ G_i Q_A)² over per-row gradients G_i: of all diagonals in K-FAC's basis the nearest to F.

    A second pass over the rows with the labels of the first. George et al. 2018 (arXiv 1806.03884); for
    influence on language models Grosse et al. 2023 (arXiv 2308.03296).
    """

    def __init__(self, problem: CurvatureProblem, damping: float, labels: Labels = "sampled"):
        super().__init__(problem, damping, labels)
        totals = {name: torch.zeros_like(values) for name, values in self.eigenvalues.items()}
        for row in problem.row_gradients(labels):
            for name, total in totals.items():
                total += self.rotated(name, row[name]).square()
        self.eigenvalues = {name: problem.scale * total for name, total in totals.items()}
