"""Damped inverses of the curvature of a retained objective, one solver a file.

diagonal, kfac, ekfac approximate the Fisher; cg, lissa, dense solve with the exact GGN or Hessian.
"""

from typing import Any, Literal

from expunge.training.curvature.cg import ConjugateGradient, conjugate_gradient
from expunge.training.curvature.dense import Dense
from expunge.training.curvature.diagonal import Diagonal
from expunge.training.curvature.ekfac import EKFAC
from expunge.training.curvature.kfac import KFAC
from expunge.training.curvature.language import language_problem, linear_weights
from expunge.training.curvature.lissa import LiSSA
from expunge.training.curvature.problem import (
    CATEGORICAL,
    GAUSSIAN,
    CurvatureProblem,
    Labels,
    Likelihood,
    Output,
    Product,
    Solver,
)

__all__ = [
    "CATEGORICAL",
    "EKFAC",
    "GAUSSIAN",
    "KFAC",
    "ConjugateGradient",
    "CurvatureProblem",
    "Dense",
    "Diagonal",
    "Labels",
    "LiSSA",
    "Likelihood",
    "Output",
    "Product",
    "Solver",
    "SolverName",
    "conjugate_gradient",
    "language_problem",
    "linear_weights",
    "make_solver",
]

SolverName = Literal["diagonal", "kfac", "ekfac", "cg", "lissa", "dense"]


def make_solver(
    name: SolverName,
    problem: CurvatureProblem,
    damping: float,
    *,
    labels: Labels = "sampled",
    product: Product = "ggn",
    iterations: int | None = None,
    tolerance: float | None = None,
    stochastic: bool = False,
) -> Solver:
    """The solver of this name, its curvature fitted. `damping` is δ itself, not relative.

    `labels` is read by diagonal, kfac and ekfac; `product` by cg, lissa and dense; `iterations` and
    `tolerance` (None: the solver's own) by cg and lissa; `stochastic` by lissa.
    """
    limits: dict[str, Any] = {"iterations": iterations, "tolerance": tolerance}
    given = {key: value for key, value in limits.items() if value is not None}
    match name:
        case "diagonal":
            return Diagonal(problem, damping, labels)
        case "kfac":
            return KFAC(problem, damping, labels)
        case "ekfac":
            return EKFAC(problem, damping, labels)
        case "cg":
            return ConjugateGradient(problem, damping, product, **given)
        case "lissa":
            return LiSSA(problem, damping, product, stochastic=stochastic, **given)
        case "dense":
            return Dense(problem, damping, product)
