"""Representation misdirection, with a constant or a measured length of the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.stats import seed_from
from expunge.subjects.architecture import MLP_OUTPUT, blocks, linear_weights
from expunge.subjects.subject import Subject
from expunge.training.states import answer_states
from expunge.training.views import View


@dataclass(frozen=True, kw_only=True)
class Misdirection(Objective):
    """ℓ_f = mean over positions of (1/D)‖h − c·û‖², û = r/‖r‖, r ~ U[0,1)^D drawn once; ℓ_r = `hidden_mse`.

    Positions are those that predict answer tokens. Only the MLP output matrices of layers ℓ−2..ℓ are trained.
    """

    reads: ClassVar[tuple[str, ...]] = ("hidden",)
    retain: str = "hidden_mse"
    retain_weight: Weight = 1200.0
    layer: int | None = None

    def misdirect(self, forget: View, target: Tensor) -> Tensor:
        states = forget.hidden(forget.layers[0])
        return forget.mean_rows((states - target.to(states.device)).square().mean(-1))

    def direction(self, subject: Subject, seed: int) -> Tensor:
        """û, [D]"""
        width = subject.config.get_text_config().hidden_size
        draw = torch.rand(width, generator=torch.Generator().manual_seed(seed_from(seed, "rmu")))
        return draw / draw.norm()

    def layers_of(self, subject: Subject) -> tuple[int]:
        """The block whose output is steered, from 0."""
        count = len(blocks(subject.model))
        layer = round(7 / 32 * count) if self.layer is None else self.layer
        if not 0 <= layer < count:
            raise ConfigError(Problem("method.layer", f"{layer}, but the model has blocks 0..{count - 1}"))
        return (layer,)

    def selects(self, subject: Subject) -> set[str]:
        (layer,) = self.layers_of(subject)
        found = linear_weights(subject.model, range(max(0, layer - 2), layer + 1))
        return {name for name in found if MLP_OUTPUT.search(name)}


@METHODS.register(
    "rmu",
    family="representation",
    erases="capability",
    targets=["topic", "capability", "entity", "records"],
    access="weights",
    needs=["retain", "reference"],
    cost="<2F+2B, the forward stops at the layer",
    scale="ddp",
    source="Li et al. 2024, arXiv 2403.03218",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class RMU(Misdirection):
    """Push the forget states of one layer toward a random direction, keep the retain states.

    The target is c·û with c = `steering`. Li et al. 2024 (arXiv 2403.03218): c 6.5, α 1200, layer 7 of 32,
    a proportion `layer: None` keeps; c depends on the model, `adaptive_rmu` measures it.
    """

    steering: Positive = 6.5

    def loss(self, forget: View, direction: Tensor) -> Tensor:
        return self.misdirect(forget, self.steering * direction)

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        return {"direction": self.direction(subject, seed)}


@METHODS.register(
    "adaptive_rmu",
    family="representation",
    erases="capability",
    targets=["topic", "capability", "entity", "records"],
    access="weights",
    needs=["retain", "reference"],
    cost="<2F+2B, the forward stops at the layer",
    scale="ddp",
    source="Huu-Tien et al. 2024, arXiv 2408.06223",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class AdaptiveRMU(Misdirection):
    """RMU with the target's length measured: s times that of the model's own forget states.

    c = s·mean‖h‖, measured once. Huu-Tien et al. 2024 (arXiv 2408.06223), s 5. They take the mean over the
    first batch; here it is over the whole forget set at θ_o, so that no order of batches matters.
    """

    scale: Positive = 5.0

    def loss(self, forget: View, direction: Tensor, steering: Tensor) -> Tensor:
        return self.misdirect(forget, steering * direction)

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        (layer,) = self.layers_of(subject)
        states = answer_states(subject, request.forget, [layer])[layer]
        return {"direction": self.direction(subject, seed), "steering": self.scale * mean_norm(states)}


def mean_norm(states: Tensor) -> Tensor:
    """Mean over positions of ‖h‖₂: [A, D] → scalar."""
    return states.norm(dim=-1).mean()
