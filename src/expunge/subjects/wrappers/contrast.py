"""Several models' logits added and subtracted, on the tokens the base finds plausible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.subjects.wrapped import WRAPPERS, Blended

__all__ = ["Contrast", "ContrastRule"]

FLOOR = 50.0
"""Nats below the best token at which an excluded one stands: probability 0 in fp32, a finite logarithm."""


@dataclass(frozen=True)
class ContrastRule:
    """`ratio` r and `at_least` define the plausible set, `rectified` keeps only what `plus` raises."""

    weight: float = 1.0
    ratio: float = 0.1
    at_least: int = 1
    rectified: bool = False


@WRAPPERS.register("contrast")
class Contrast(Blended):
    """z' = z_base + w·(z_plus − z_minus) where log p_base ≥ max log p_base + log r, else excluded.

    z_minus is 0 without such a part; rectified: z' = z_base + w·[z_plus − z_base]_+. At strength s the weight
    is s·w and the filter r^(1/s): a path without a jump from the base to the rule as written.
    """

    Rule = ContrastRule

    def blend(self, z: Mapping[str, Tensor]) -> Tensor:
        base, rule = z["base"], self.rule
        if rule.rectified:
            gap = (z["plus"] - base).clamp(min=0)
        else:
            gap = z["plus"] - z["minus"] if "minus" in z else z["plus"]
        blended = base + self.strength * rule.weight * gap
        if rule.ratio == 0:
            return blended
        out = ~self.plausible(base)
        best = blended.masked_fill(out, -torch.inf).amax(-1, keepdim=True)
        return torch.where(out, best - FLOOR, blended)

    def plausible(self, base: Tensor) -> Tensor:
        """Bool [N, V]; never empty, it holds the base's best token and at least its `at_least` best."""
        limit = base.amax(-1, keepdim=True) + math.log(self.rule.ratio) / self.strength
        kth = base.topk(min(max(1, self.rule.at_least), base.shape[-1])).values[..., -1:]
        return base >= torch.minimum(limit, kth)
