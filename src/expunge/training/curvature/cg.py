"""Conjugate gradients on curvature-vector products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from expunge.errors import NotComputable
from expunge.progress import say
from expunge.training.curvature.problem import CurvatureProblem, Product

__all__ = ["ConjugateGradient", "Solved", "conjugate_gradient"]


class Solved(NamedTuple):
    solution: Tensor
    residual: float  # ‖Hx − g‖/‖g‖


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], wanted: Tensor, *, iterations: int, tolerance: float
) -> Solved:
    """Solve Hx = `wanted` for any shape, H given by its product, until ‖residual‖ ≤ tolerance·‖wanted‖.

    Raises NotComputable on negative curvature: H must be positive definite.
    """
    found, residual = wanted.new_zeros(wanted.shape), wanted
    start = float(wanted.norm())
    direction, squared = residual, start**2
    for _ in range(iterations):
        if squared**0.5 <= tolerance * start:
            break
        curved = product(direction)
        bend = float((direction * curved).sum())
        if not bend > 0:
            raise NotComputable("negative curvature: CG has no solution. Raise damping")
        found = found + (squared / bend) * direction
        residual = residual - (squared / bend) * curved
        before, squared = squared, float(residual.square().sum())
        direction = residual + (squared / before) * direction
    return Solved(found, squared**0.5 / start if start else 0.0)


class ConjugateGradient:
    """(H + δI)x = g with one product over all rows per iteration; says so when `iterations` do not suffice.

    `residual` is what the last solve left, relative. A GGN is never negative, a Hessian can be.
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
        damped = lambda v: self.problem.product(v, self.product) + self.damping * v  # noqa: E731
        flat = self.problem.flat(gradient)
        found, self.residual = conjugate_gradient(
            damped, flat, iterations=self.iterations, tolerance=self.tolerance
        )
        if self.residual > self.tolerance:
            say(f"CG: relative residual {self.residual:.1e} after {self.iterations} iterations")
        return self.problem.named(found)
