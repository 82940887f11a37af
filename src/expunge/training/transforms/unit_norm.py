"""The forget gradient at a fixed length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from expunge.training.transforms.base import TRANSFORMS, Gradients, GradientScene, Transform, scaled

__all__ = ["UnitNorm"]


@TRANSFORMS.register("unit_norm", source="Sondej et al. 2025, arXiv 2506.12484", cost="none")
@dataclass(frozen=True, kw_only=True)
class UnitNorm(Transform):
    """Scales g_f to a fixed norm over all weights, however flat or steep the forget loss is.

    With optimizer `sgd` every step then goes lr·`length` far, retain term and clipping aside; with Adam only
    the balance against g_r changes. g_f = 0 stays zero. Part of Sondej et al. 2025 (arXiv 2506.12484).
    """

    length: Annotated[float, Gt(0)] = 1.0

    def rectify(self, forget: Gradients, retain: Gradients, scene: GradientScene) -> Gradients:
        return scaled(forget, self.length)
