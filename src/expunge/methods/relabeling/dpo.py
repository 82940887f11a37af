"""Prefer a refusal to the gold answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.methods.base import METHODS, Objective, Positive
from expunge.training.views import View


@METHODS.register(
    "dpo",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["reference", "retain", "refusals"],
    cost="3F+3B",
    scale="single",
    source="Rafailov et al. 2023, arXiv 2305.18290; Zhang et al. 2024, arXiv 2404.05868",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class DPO(Objective):
    """Prefer a refusal to the gold answer: ℓ_f = −(2/β) log σ(β Δ_i).

    Δ = (S^ref_win − S_win) − (S^ref_lose − S_lose), win the refusal, lose the gold answer. Rafailov et al.
    2023 (arXiv 2305.18290) have no prefactor; 2/β is the unlearning codes' (Zhang et al. 2024, 2404.05868).
    """

    reads: ClassVar[tuple[str, ...]] = (
        "sum_nll",
        "reference.sum_nll",
        "refusal.sum_nll",
        "refusal.reference.sum_nll",
    )
    beta: Positive = 0.1

    def loss(self, forget: View) -> Tensor:
        win, lose = forget.refusal, forget
        delta = (win.reference.sum_nll - win.sum_nll) - (lose.reference.sum_nll - lose.sum_nll)
        return -(2 / self.beta) * logsigmoid(self.beta * delta)
