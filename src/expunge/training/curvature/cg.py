"""Conjugate gradients on curvature-vector products."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from expunge.errors import NotComputable
from expunge.progress import say
from expunge.training.curvature.problem import CurvatureProblem, Product

__all__ = ["ConjugateGradient"]


class ConjugateGradient:
    """Solve (H + δI)x = g until ‖residual‖ ≤ tolerance·‖g‖; one product over all rows per iteration.

    Says so when `iterations` do not suffice (`residual`: what is left, relative). Raises NotComputable on
    negative curvature, which a Hessian can have and a GGN cannot.
    """

    def __init__(
        self,
        problem: CurvatureProblem,
        damping: float,
        product: Product = "ggn",
        *,
        iterations: int = 100,
        tolerance: float = 1e-5,
    ):
        self.problem, self.damping, self.product = problem, damping, product
        self.iterations, self.tolerance = iterations, tolerance
        self.residual = 0.0

    def solve(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        residual = self.problem.flat(gradient)
        found = residual.new_zeros(residual.shape)
        direction, start = residual.clone(), float(residual.norm())
        squared, wanted = start**2, self.tolerance * start
        for _ in range(self.iterations if start else 0):
            curved = self.problem.product(direction, self.product) + self.damping * direction
            bend = float(direction @ curved)
            if not bend > 0:
                raise NotComputable(f"{self.product}: negative curvature, CG has no solution; raise damping")
            found += (squared / bend) * direction
            residual = residual - (squared / bend) * curved
            before, squared = squared, float(residual @ residual)
            if squared**0.5 <= wanted:
                break
            direction = residual + (squared / before) * direction
        self.residual = squared**0.5 / start if start else 0.0
        if self.residual > self.tolerance:
            say(f"CG: relative residual {self.residual:.1e} after {self.iterations} iterations")
        return self.problem.named(found)
