"""Representation rerouting, known as circuit breakers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from torch import Tensor
from torch.nn.functional import cosine_similarity

from expunge.data.request import Request
from expunge.errors import ConfigError, Problem
from expunge.methods.base import METHODS, Objective, Weight
from expunge.subjects.architecture import blocks, linear_weights
from expunge.subjects.subject import Subject
from expunge.training.perturb import perturb
from expunge.training.views import View
from expunge.training.workspace import Workspace


@METHODS.register(
    "rr",
    family="representation",
    erases="capability",
    targets=["topic", "capability", "records"],
    access="weights",
    needs=["retain", "reference"],
    cost="<2F+2B, the forward stops at the last layer read",
    scale="ddp",
    source="Zou et al. 2024, arXiv 2406.04313",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class RR(Objective):
    """Turn the forget states away from where they were; every retain state stays where it is.

    At progress s: ℓ_f = α(1−s)·mean over layers and positions of [cos(h_ref, h)]_+, ℓ_r = α·s·`hidden_norm`
    over all layers up to the last one read. At θ_o the cosine is at its maximum and the gradient is exactly
    zero, so trained weights start a thousandth of their spread away (`start`). Zou et al. 2024 (arXiv
    2406.04313): a LoRA of rank 16, layers 10 and 20 of 32, α 10, lr 1e-4. `until` is s after the last step;
    the authors' code ends at one half.
    """

    reads: ClassVar[tuple[str, ...]] = ("hidden", "reference.hidden")
    retain: str = "hidden_norm"
    forget_weight: Weight = 10.0
    retain_weight: Weight = 10.0
    layers: tuple[int, ...] = ()
    rank: int = 16  # of the LoRA, where the run has set none
    until: Annotated[float, Gt(0), Le(1)] = 1.0
    start: Annotated[float, Gt(0)] = 1e-3

    def loss(self, forget: View) -> Tensor:
        cosines = [
            cosine_similarity(forget.hidden(ell), forget.reference.hidden(ell), dim=-1)
            for ell in forget.layers
        ]
        return forget.mean_rows(torch.stack(cosines).clamp(min=0).mean(0))

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        return workspace.train(self, subject, request, rank=self.rank)

    def weights(self, progress: float) -> tuple[float, float]:
        s = self.until * progress
        return self.forget_weight * (1 - s), self.retain_weight * s

    def layers_of(self, subject: Subject) -> tuple[int, ...]:
        count = len(blocks(subject.model))
        chosen = self.layers or (round(10 / 32 * count), round(20 / 32 * count))
        if not all(0 <= layer < count for layer in chosen):
            what = f"{list(chosen)}, but the model has blocks 0..{count - 1}"
            raise ConfigError(Problem("method.layers", what))
        return tuple(sorted(set(chosen)))

    def retain_layers_of(self, subject: Subject) -> tuple[int, ...]:
        return tuple(range(max(self.layers_of(subject)) + 1))

    def selects(self, subject: Subject) -> set[str]:
        """Every linear map up to the last layer read."""
        return set(linear_weights(subject.model, self.retain_layers_of(subject)))

    def begin(self, subject: Subject, seed: int) -> None:
        perturb(subject, self.start, seed)
