"""Inverted hinge loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.methods.base import METHODS, Objective
from expunge.training.views import View


@METHODS.register(
    "ihl",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    scale="fsdp",
    source="Cha et al. 2024, arXiv 2408.06621",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class InvertedHinge(Objective):
    """Inverted hinge: push the gold token below its strongest rival; bounded, needs no reference.

    ℓ_f = mean_t [1 + p_y − max_{v≠y} p_v]. In [0, 2]; the paper's clamp at 0 never binds, since no rival
    exceeds 1. Descent lowers the gold logit by p_y(1 − p_y + p_m) and raises the rival's by p_m(1 − p_m +
    p_y): mass moves onto one rival. Meant for a LoRA (rank 32, α 64, lr 1e-4), best with its own
    initialization FILA: `adapter: lora`, `lora: {rank: 32, start: fila}`. Cha et al. 2024 (arXiv 2408.06621).
    """

    reads: ClassVar[tuple[str, ...]] = ("logits",)

    def loss(self, forget: View) -> Tensor:
        p = forget.logits.softmax(-1)
        gold = forget.targets[:, None]
        rival = p.scatter(1, gold, -1.0).max(-1).values
        return forget.mean_rows(1 + p.gather(1, gold)[:, 0] - rival)
