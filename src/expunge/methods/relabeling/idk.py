"""Refusal fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.methods.base import METHODS, Objective
from expunge.training.views import View


@METHODS.register(
    "idk",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["retain", "refusals"],
    cost="2F+2B",
    scale="single",
    source="Maini et al. 2024, arXiv 2401.06121",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class IDK(Objective):
    """Refusal fine-tuning: ℓ_f = mean NLL of a refusal on the forget prompts; no gold answer is in the batch.

    One refusal per (record, epoch). The fact stays in the weights. Maini et al. 2024 (arXiv 2401.06121).
    """

    reads: ClassVar[tuple[str, ...]] = ("refusal.mean_nll",)

    def loss(self, forget: View) -> Tensor:
        return forget.refusal.mean_nll
