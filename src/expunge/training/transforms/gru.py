"""Gradient rectification: the forget gradient without what conflicts with retain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from expunge.training.transforms.base import TRANSFORMS, Gradients, GradientScene, Transform, inner, norm

__all__ = ["GRU"]


@TRANSFORMS.register("gru", source="Wang et al. 2025, arXiv 2503.09117", cost="+1F, one gradient kept")
@dataclass(frozen=True, kw_only=True)
class GRU(Transform):
    """If ⟨g_f, ḡ⟩ < 0: g_f ← g_f − (⟨g_f, ḡ⟩/‖ḡ‖²) ḡ, ḡ the moving average of the retain gradient.

    ḡ ← w·g_r + (1−w)·ḡ with w the weight of the newest gradient (0.8 in the authors' code; 1 is the plain
    projection of Chaudhry et al. 2018, arXiv 1812.00420, and Yu et al. 2020, arXiv 2001.06782). With `clip`
    c < 0 a cosine below c counts as c, and some conflict stays. Taken before the optimizer: Adam's step may
    still conflict. Wang et al. 2025 (arXiv 2503.09117).
    """

    newest: Annotated[float, Gt(0), Le(1)] = 0.8
    clip: Annotated[float, Ge(-1), Le(0)] = -1.0

    def rectify(self, forget: Gradients, retain: Gradients, scene: GradientScene) -> Gradients:
        average = self._average(retain, scene)
        length = norm(average)
        product = inner(forget, average)
        if product >= 0 or length == 0:
            return forget
        product = torch.maximum(product, self.clip * norm(forget) * length)
        return [f - (product / length**2) * a for f, a in zip(forget, average, strict=True)]

    def _average(self, retain: Gradients, scene: GradientScene) -> Gradients:
        """ḡ, kept in the scene; the first gradient as it is."""
        names = [f"average.{i}" for i in range(len(retain))]
        for name, new in zip(names, retain, strict=True):
            old = scene.state.get(name)
            scene.state[name] = new.clone() if old is None else torch.lerp(old, new, self.newest)
        return [scene.state[name] for name in names]
