"""The contract of a gradient transform: g = T(∇[γ·forget], ∇[λ·retain]) before selection and optimizer.

Transforms see g_f and g_r apart (two forwards). They compose in the order they are listed: `around` of the
first is outermost, `rectify` of the first comes first. What a transform keeps between steps it keeps in
`scene.state`, which is checkpointed.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.registry import Card, Registry

__all__ = ["TRANSFORMS", "GradientScene", "Gradients", "Transform", "inner", "norm"]

TRANSFORMS: Registry[Transform] = Registry("transform", "expunge.training.transforms", "TRANSFORMS")

Gradients = list[Tensor]
"""One tensor per trained parameter, in the order of `scene.parameters`."""


@dataclass
class GradientScene:
    """What a transform may see: the trained parameters, the step (from 0), the seed, its own tensors."""

    parameters: Sequence[Tensor]
    step: int
    seed: int
    state: dict[str, Tensor]


class Transform(ABC):
    """Override `around` to move where the forget gradient is taken, `rectify` to change it afterwards."""

    name: ClassVar[str]
    card: ClassVar[Card]

    def around(self, gradient: Callable[[], Gradients], scene: GradientScene) -> Gradients:
        """g_f; `gradient()` takes it at the weights as they stand. Weights must come back bit for bit."""
        return gradient()

    def rectify(self, forget: Gradients, retain: Gradients, scene: GradientScene) -> Gradients:
        """g_f' from g_f and g_r (zeros without a retain term). g_r itself is never changed."""
        return forget


def inner(one: Gradients, other: Gradients) -> Tensor:
    """⟨a, b⟩ over all parameters, fp32."""
    products = [(a.float() * b.float()).sum() for a, b in zip(one, other, strict=True)]
    return torch.stack(products).sum()


def norm(gradient: Gradients) -> Tensor:
    """‖g‖₂ over all parameters, fp32."""
    return inner(gradient, gradient).sqrt()
