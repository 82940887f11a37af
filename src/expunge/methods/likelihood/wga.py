"""Token-weighted ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.methods.base import METHODS, Objective, Weight
from expunge.training.views import View


@METHODS.register(
    "wga",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    scale="single",
    source="Wang, Zhou et al. 2025, arXiv 2502.19301",
)
@dataclass(frozen=True, kw_only=True)
class WGA(Objective):
    """Weighted gradient ascent: ℓ_f = −mean_t sg(p_t^β) ℓ_t, so that forgotten tokens are left alone.

    β = 0 is gradient ascent; the weight carries no gradient. Wang, Zhou et al. 2025 (arXiv 2502.19301); β = 5
    is the value of their code.
    """

    reads: ClassVar[tuple[str, ...]] = ("token_logprobs",)
    beta: Weight = 5.0

    def loss(self, forget: View) -> Tensor:
        logp = forget.token_logprobs
        weight = (self.beta * logp).exp().detach()
        return forget.mean_rows(weight * logp)
