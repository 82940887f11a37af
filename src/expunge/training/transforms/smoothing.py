"""Random smoothing of the forget loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge

from expunge.stats import seed_from
from expunge.training.transforms.base import (
    TRANSFORMS,
    Gradients,
    GradientScene,
    Transform,
    displaced,
)

__all__ = ["Smoothing"]


@TRANSFORMS.register(
    "smoothing", source="Fan et al. 2025, arXiv 2502.05374", cost="+(K−1)(1F+1B), a copy of θ"
)
@dataclass(frozen=True, kw_only=True)
class Smoothing(Transform):
    """g_f is the mean of K forget gradients at θ + σ·N(0, I): the gradient of a smoothed loss.

    K = 3, σ = 1e-4 (the authors' code). Draws are functions of (seed, step, k, tensor); they move the trained
    tensors whole, masks or not. The logged loss is that of the first draw. Fan et al. 2025
    (arXiv 2502.05374).
    """

    draws: Annotated[int, Ge(1)] = 3
    sigma: Annotated[float, Ge(0)] = 1e-4

    def around(self, gradient: Callable[[], Gradients], scene: GradientScene) -> Gradients:
        if self.sigma == 0:
            return gradient()
        total: Gradients = []
        for draw in range(self.draws):
            with displaced(scene.parameters, self.noise(scene, draw)):
                found = gradient()
            total = [t + f for t, f in zip(total, found, strict=True)] if total else found
        return [t / self.draws for t in total]

    def noise(self, scene: GradientScene, draw: int) -> Gradients:
        """σ·N(0, I), one generator per tensor."""
        made = []
        for i, parameter in enumerate(scene.parameters):
            generator = torch.Generator(parameter.device)
            generator.manual_seed(seed_from(scene.seed, "smoothing", scene.step, draw, i) % 2**63)
            noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            made.append(self.sigma * noise.to(parameter.dtype))
        return made
