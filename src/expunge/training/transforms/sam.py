"""Sharpness-aware minimization of the forget loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from expunge.training.transforms.base import (
    TRANSFORMS,
    Gradients,
    GradientScene,
    Transform,
    displaced,
    norm,
    scaled,
)

__all__ = ["SAM"]


@TRANSFORMS.register("sam", source="Fan et al. 2025, arXiv 2502.05374", cost="+1F+1B, a copy of θ")
@dataclass(frozen=True, kw_only=True)
class SAM(Transform):
    """g_f is taken at θ + ρ·g_f/‖g_f‖, the worst point nearby, so that relearning is slower.

    min over θ of max over ‖ε‖ ≤ ρ of the *forget* loss: the retain gradient stays at θ. One norm over all
    selected weights; g_f = 0 leaves θ where it is. ρ = 0.01 (the authors' code; their sweep is 0.01 to 0.1).
    The logged loss is that at θ. Fan et al. 2025 (arXiv 2502.05374), after Foret et al. 2020
    (arXiv 2010.01412).
    """

    rho: Annotated[float, Ge(0)] = 0.01

    def around(self, gradient: Callable[[], Gradients], scene: GradientScene) -> Gradients:
        here = gradient()
        if self.rho == 0 or norm(here) == 0:
            return here
        with displaced(scene.parameters, scaled(here, self.rho)):
            return gradient()
