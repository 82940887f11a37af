"""Disruption masking: only the entries of the forget gradient that retain agrees with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from expunge.training.transforms.base import (
    TRANSFORMS,
    Gradients,
    GradientScene,
    Transform,
    moving_average,
    scaled,
)

__all__ = ["Disruption"]


@TRANSFORMS.register(
    "disruption", source="Sondej et al. 2025, arXiv 2506.12484", cost="+1F, one gradient kept"
)
@dataclass(frozen=True, kw_only=True)
class Disruption(Transform):
    """Keeps the entries of g_f whose sign is that of ḡ, the moving average of g_r, and zeroes the rest.

    ḡ ← d·ḡ + (1−d)·g_r from zero, d = 0.9 (the authors' code, as part of `mudman`). ⟨g_f', ḡ⟩ ≥ 0 always;
    where ḡ is zero nothing is kept, so without a retain term nothing is forgotten. `length`: the norm the
    masked gradient is scaled to, none by default. Masks gradients, not Adam's moments. Sondej et al. 2025
    (arXiv 2506.12484).
    """

    decay: Annotated[float, Ge(0), Lt(1)] = 0.9
    length: Annotated[float, Gt(0)] | None = None

    def rectify(self, forget: Gradients, retain: Gradients, scene: GradientScene) -> Gradients:
        average = moving_average(retain, scene, 1 - self.decay, from_zero=True)
        # signs, not products: those of two tiny numbers are zero
        kept = [f * (f.sign() * a.sign() > 0) for f, a in zip(forget, average, strict=True)]
        return kept if self.length is None else scaled(kept, self.length)
