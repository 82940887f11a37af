"""Refusal fine-tuning, with and without answer preservation."""

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
    scale="fsdp",
    source="Maini et al. 2024, arXiv 2401.06121",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class IDK(Objective):
    """Refusal fine-tuning: train on a refusal in the place of each forget answer.

    ℓ_f = mean NLL of a refusal on the forget prompts; no gold answer is in the batch. One refusal per
    (record, epoch). The fact stays in the weights. Maini et al. 2024 (arXiv 2401.06121).
    """

    reads: ClassVar[tuple[str, ...]] = ("refusal.mean_nll",)

    def loss(self, forget: View) -> Tensor:
        return forget.refusal.mean_nll


@METHODS.register(
    "idk_ap",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["retain", "refusals"],
    cost="3F+3B",
    scale="fsdp",
    source="Yuan et al. 2024, arXiv 2410.08109",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class IDKWithAnswerPreservation(IDK):
    """Refusal fine-tuning with answer preservation: retain prompts must prefer their answer to a refusal.

    `idk` with the retain loss `ap`, −(1/β) log σ(β (S(refusal) − S(answer))), β = 0.1, in the place of ce:
    refusals spread less to what must stay. Yuan et al. 2024 (arXiv 2410.08109) run 5 epochs at lr 1e-5.
    """

    retain: str = "ap"
