"""The diagonal of the Fisher, exact per row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from expunge.training.curvature.problem import CurvatureProblem, Labels

__all__ = ["Diagonal"]


class Diagonal:
    """g / (diag(F) + δ): any parameters, one backward pass per row, memory of one more model."""

    def __init__(self, problem: CurvatureProblem, damping: float, labels: Labels = "sampled"):
        self.problem, self.damping = problem, damping
        total = torch.zeros_like(problem.flat(problem.parameters))
        for row in problem.row_gradients(labels):
            total += problem.flat(row).square()
        self.diagonal = problem.scale * total + problem.ridge

    def solve(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.problem.named(self.problem.flat(gradient) / (self.diagonal + self.damping))
