"""The whole matrix, for small parameter counts: what the other solvers are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from expunge.errors import ConfigError, NotComputable, Problem
from expunge.training.curvature.problem import CurvatureProblem, Labels

__all__ = ["LIMIT", "Dense"]

LIMIT = 4096
"""Most parameters a dense matrix is made for (128 MiB in float64)."""


class Dense:
    """Cholesky solve of (H + δI)x = g in float64; H from P products (ggn, hessian) or as Σ g gᵀ (fisher).

    Raises ConfigError above LIMIT parameters, NotComputable where H + δI is not positive definite.
    """

    def __init__(
        self,
        problem: CurvatureProblem,
        damping: float,
        curvature: Literal["ggn", "hessian", "fisher"] = "ggn",
        labels: Labels = "sampled",
    ):
        size = problem.size
        if size > LIMIT:
            fix = f"At most {LIMIT:,}; take ekfac, cg or diagonal"
            raise ConfigError(Problem("method.solver", f"dense for {size:,} parameters", fix))
        self.problem = problem
        unit = torch.eye(size, dtype=torch.float64, device=problem.flat(problem.parameters).device)
        if curvature == "fisher":
            rows = torch.stack([problem.flat(row).double() for row in problem.row_gradients(labels)])
            self.matrix = problem.scale * rows.T @ rows + problem.ridge * unit
        else:
            like = problem.flat(problem.parameters).dtype
            columns = [problem.product(one.to(like), curvature).double() for one in unit]
            self.matrix = torch.stack(columns)
        damped = (self.matrix + self.matrix.T) / 2 + damping * unit
        self.factor, broken = torch.linalg.cholesky_ex(damped)
        if broken:
            raise NotComputable(f"{curvature}: the damped curvature is not positive definite; raise damping")

    def solve(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flat = self.problem.flat(gradient)
        solved = torch.cholesky_solve(flat.double()[:, None], self.factor)[:, 0]
        return self.problem.named(solved.to(flat.dtype))
