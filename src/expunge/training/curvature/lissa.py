"""The Neumann series of the inverse, by all rows or by batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.progress import say
from expunge.stats import seed_from
from expunge.training.curvature.problem import CurvatureProblem, Product

__all__ = ["LiSSA"]


class LiSSA:
    """h ← g + h − (H + δI)h/s, so that h/s → (H + δI)^{-1} g, with s above the largest eigenvalue.

    All rows in every step, until ‖residual‖ ≤ tolerance·‖g‖; or `stochastic`: one batch a step, drawn by the
    problem's seed, `iterations` steps, mean of `repeats` runs, with noise that more steps do not remove.
    s is 1.1 times the largest eigenvalue found by power iteration, over all batches where they are drawn.
    Agarwal, Bullins and Hazan 2016 (arXiv 1602.03943); Koh and Liang 2017 (arXiv 1703.04730).
    """

    def __init__(
        self,
        problem: CurvatureProblem,
        damping: float,
        product: Product = "ggn",
        *,
        iterations: int = 1000,
        tolerance: float = 1e-6,
        stochastic: bool = False,
        repeats: int = 4,
    ):
        self.problem, self.damping, self.product = problem, damping, product
        self.iterations, self.tolerance = iterations, tolerance
        self.stochastic, self.repeats = stochastic, repeats
        self.batches: list[Any] = problem.batches() if stochastic else [None]
        largest = max(self._largest_eigenvalue(batch) for batch in self.batches)
        self.scale = 1.1 * (largest + problem.ridge * stochastic + damping)

    def solve(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        g = self.problem.flat(gradient)
        runs = [self._run(g, repeat) for repeat in range(self.repeats if self.stochastic else 1)]
        return self.problem.named(torch.stack(runs).mean(0))

    def _run(self, g: Tensor, repeat: int) -> Tensor:
        size = float(g.norm())
        rng = np.random.default_rng(seed_from(self.problem.seed, "lissa", repeat))
        found, left = g.clone(), 0.0
        for _ in range(self.iterations):
            batch = self.batches[int(rng.integers(len(self.batches)))]
            step = g - (self._product(found, batch) + self.damping * found) / self.scale
            found, left = found + step, float(step.norm())
            if not self.stochastic and left <= self.tolerance * size:
                break
        if not self.stochastic and left > self.tolerance * size:
            say(f"LiSSA: relative residual {left / size:.1e} after {self.iterations} steps")
        return found / self.scale

    def _product(self, vector: Tensor, items: Sequence[Any] | None) -> Tensor:
        ridge = 0.0 if items is None else self.problem.ridge  # a batch's product comes without it
        return self.problem.product(vector, self.product, items) + ridge * vector

    def _largest_eigenvalue(self, items: Sequence[Any] | None, rounds: int = 30) -> float:
        generator = torch.Generator().manual_seed(seed_from(self.problem.seed, "power iteration"))
        like = self.problem.flat(self.problem.parameters).detach()
        vector = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
        size = 0.0
        for _ in range(rounds):
            vector = self.problem.product(vector / vector.norm().clamp(min=1e-30), self.product, items)
            size = float(vector.norm())
        return size
