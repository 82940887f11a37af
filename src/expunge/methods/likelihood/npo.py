"""Negative preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.methods.base import METHODS, Objective, Positive
from expunge.training.views import View


@METHODS.register(
    "npo",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["reference", "retain"],
    cost="2F+2B",
    scale="fsdp",
    source="Zhang, Lin, Bai and Mei 2024, arXiv 2404.05868",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class NPO(Objective):
    """Negative preference optimization: ascent that fades as an answer gets less likely than it was.

    ℓ_f = −(2/β) log σ(β (S_i − S_i^ref)). S is the sum over the answer's tokens. At θ = θ_o the value is
    (2/β) ln 2 and the gradient that of ascent on S; β → 0 is ascent, large S has weight 0. Zhang et al. 2024
    (arXiv 2404.05868); β = 0.1 is theirs.
    """

    reads: ClassVar[tuple[str, ...]] = ("sum_nll", "reference.sum_nll")
    beta: Positive = 0.1

    def loss(self, forget: View) -> Tensor:
        ratio = forget.sum_nll - forget.reference.sum_nll
        return -(2 / self.beta) * logsigmoid(self.beta * ratio)
