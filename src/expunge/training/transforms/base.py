"""The contract of a gradient transform: g = T(∇[γ·forget], ∇[λ·retain]) before selection and optimizer.

Transforms see g_f and g_r apart (two forwards). They compose in the order they are listed: `around` of the
first is outermost, `rectify` of the first comes first, and every `around` comes before any `rectify`. The
identity is the empty list, which keeps the fused forward. What a transform keeps between steps it keeps in
`scene.state`, which is checkpointed.

Both gradients are of the whole step: accumulated over its micro-batches, inside the masks. Over several
processes they must be all-reduced before they come here; no transform is linear in them.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.registry import Card, Registry

__all__ = [
    "TRANSFORMS",
    "GradientScene",
    "Gradients",
    "Transform",
    "displaced",
    "inner",
    "moving_average",
    "norm",
    "scaled",
]

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


def scaled(gradient: Gradients, length: float) -> Gradients:
    """The same direction with this norm; zero stays zero."""
    size = norm(gradient)
    return gradient if size == 0 else [g * (length / size) for g in gradient]


def moving_average(
    gradient: Gradients, scene: GradientScene, newest: float, *, from_zero: bool = False
) -> Gradients:
    """ḡ ← w·g + (1−w)·ḡ with w = `newest`, fp32, kept in the scene; begins at the first g, or at zero."""
    names = [f"average.{i}" for i in range(len(gradient))]
    for name, new in zip(names, (g.float() for g in gradient), strict=True):
        start = torch.zeros_like(new) if from_zero else new
        scene.state[name] = torch.lerp(scene.state.get(name, start), new, newest)
    return [scene.state[name] for name in names]


@contextmanager
def displaced(parameters: Sequence[Tensor], by: Gradients) -> Iterator[None]:
    """θ + ε inside the block; θ comes back from a copy, whatever happens: (θ + ε) − ε ≠ θ in floats."""
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for parameter, shift in zip(parameters, by, strict=True):
                parameter.add_(shift)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
