"""NPO without a reference, per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.training.views import View


@METHODS.register(
    "simnpo",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    scale="fsdp",
    source="Fan et al. 2024, arXiv 2410.07163",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class SimNPO(Objective):
    """NPO without a reference model, and fair to long answers.

    ℓ_f = −(2/β) log σ(β (m_i − margin)), m the mean NLL. Independent of answer length at equal per-token NLL.
    Fan et al. 2024 (arXiv 2410.07163); β = 2.5 and the forget weight 0.1375 are their TOFU forget05 values,
    margin 0 too (the paper writes it outside β).
    """

    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)
    beta: Positive = 2.5
    margin: float = 0.0
    forget_weight: Weight = 0.1375

    def loss(self, forget: View) -> Tensor:
        return -(2 / self.beta) * logsigmoid(self.beta * (forget.mean_nll - self.margin))
