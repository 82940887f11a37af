"""Gradient rectification: the forget gradient without what conflicts with retain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le

from expunge.training.transforms.base import (
    TRANSFORMS,
    Gradients,
    GradientScene,
    Transform,
    inner,
    moving_average,
    norm,
)

__all__ = ["GRU"]


@TRANSFORMS.register("gru", source="Wang et al. 2025, arXiv 2503.09117", cost="+1F, one gradient kept")
@dataclass(frozen=True, kw_only=True)
class GRU(Transform):
    """If ⟨g_f, ḡ⟩ < 0: g_f ← g_f − (⟨g_f, ḡ⟩/‖ḡ‖²) ḡ, ḡ the moving average of the retain gradient.

    ḡ ← w·g_r + (1−w)·ḡ with w the weight of the newest gradient (0.8 in the authors' code; 1 is the plain
    projection of Chaudhry et al. 2018, arXiv 1812.00420, and Yu et al. 2020, arXiv 2001.06782). With `clip`
    c < 0 a cosine below c counts as c, and some conflict stays (the authors' −0.5 where they clip). `scope`:
    one projection for all weights, or one per tensor. Taken before the optimizer: Adam's step may still
    conflict. Wang et al. 2025 (arXiv 2503.09117).
    """

    newest: Annotated[float, Gt(0), Le(1)] = 0.8
    clip: Annotated[float, Ge(-1), Le(0)] = -1.0
    scope: Literal["global", "tensor"] = "global"

    def rectify(self, forget: Gradients, retain: Gradients, scene: GradientScene) -> Gradients:
        average = moving_average(retain, scene, self.newest)
        if self.scope == "global":
            return self._project(forget, average)
        return [self._project([f], [a])[0] for f, a in zip(forget, average, strict=True)]

    def _project(self, forget: Gradients, average: Gradients) -> Gradients:
        product, square = inner(forget, average), inner(average, average)
        if product >= 0 or square == 0:
            return forget
        product = torch.maximum(product, self.clip * norm(forget) * square.sqrt())
        return [f - (product / square) * a for f, a in zip(forget, average, strict=True)]
