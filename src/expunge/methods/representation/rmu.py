"""Representation misdirection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.stats import seed_from
from expunge.subjects.architecture import MLP_OUTPUT, blocks
from expunge.subjects.subject import Subject
from expunge.training.views import View


@METHODS.register(
    "rmu",
    family="representation",
    erases="capability",
    targets=["topic", "capability", "entity", "records"],
    access="weights",
    needs=["retain", "reference"],
    cost="<2F+2B, the forward stops at the layer",
    scale="single",
    source="Li et al. 2024, arXiv 2403.03218",
)
@dataclass(frozen=True, kw_only=True)
class RMU(Objective):
    """Push the forget states of one layer toward a random direction, keep the retain states where they are.

    ℓ_f = mean over positions of (1/D)‖h − c·û‖², û = r/‖r‖ with r ~ U[0,1)^D drawn once; ℓ_r = `hidden_mse`
    with weight α. Only the MLP output matrices of layers ℓ−2..ℓ are trained. Positions are those that predict
    answer tokens. Li et al. 2024 (arXiv 2403.03218): c 6.5, α 1200, layer 7 of 32, a proportion `None` keeps.
    """

    reads: ClassVar[tuple[str, ...]] = ("hidden",)
    retain: str = "hidden_mse"
    retain_weight: Weight = 1200.0
    steering: Positive = 6.5
    layer: int | None = None

    def loss(self, forget: View, direction: Tensor) -> Tensor:
        states = forget.hidden(forget.layers[0])
        target = self.steering * direction.to(states.device)
        return forget.mean_rows((states - target).square().mean(-1))

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        """û, [D]; kept in the checkpoint."""
        width = subject.config.get_text_config().hidden_size
        draw = torch.rand(width, generator=torch.Generator().manual_seed(seed_from(seed, "rmu")))
        return {"direction": draw / draw.norm()}

    def layers_of(self, subject: Subject) -> tuple[int]:
        """The block whose output is steered, from 0."""
        count = len(blocks(subject.model))
        layer = round(7 / 32 * count) if self.layer is None else self.layer
        if not 0 <= layer < count:
            raise ConfigError(Problem("method.layer", f"{layer}, but the model has blocks 0..{count - 1}"))
        return (layer,)

    def selects(self, subject: Subject) -> set[str]:
        (layer,) = self.layers_of(subject)
        stack = blocks(subject.model)
        wanted = {id(p) for i in range(max(0, layer - 2), layer + 1) for p in stack[i].parameters()}
        return {
            name
            for name, p in subject.model.named_parameters()
            if id(p) in wanted and p.dim() > 1 and MLP_OUTPUT.search(name)
        }
