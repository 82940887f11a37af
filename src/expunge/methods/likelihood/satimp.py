"""Weights by saturation and by importance, token by token or coarser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from expunge.methods.base import METHODS, Objective, Weight
from expunge.training.views import View


@METHODS.register(
    "satimp", family="likelihood", erases="influence", targets=["records", "entity", "document", "topic"],
    access="weights", needs=["retain"], cost="2F+2B", scale="fsdp",
    source="Yang et al. 2025, arXiv 2505.11953", verified=["forgetting", "utility"],
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class SatImp(Objective):
    """Ascent weighted token by token: still likely (saturation), and hard to guess (importance).

    ℓ_f = −mean_t sg(p_t^β1 (1 − p_t)^β2) ℓ_t. `granularity`: the weight of each token, its mean over the row
    (instance), or over the rows of a micro-batch (batch: changes with `accumulate`). Yang et al. 2025 (arXiv
    2505.11953); 5, 0.1 and the forget weight 0.1 are what their code recommends; its coarser weights are
    powers of a row's likelihood instead.
    """

    reads: ClassVar[tuple[str, ...]] = ("token_logprobs",)
    beta1: Weight = 5.0
    beta2: Weight = 0.1
    forget_weight: Weight = 0.1
    granularity: Literal["token", "instance", "batch"] = "token"

    def loss(self, forget: View) -> Tensor:
        return forget.mean_rows(self.weight(forget).detach() * forget.token_logprobs)

    def weight(self, forget: View) -> Tensor:
        """w, [A]"""
        logp = forget.token_logprobs
        token = (self.beta1 * logp).exp() * (-logp.expm1()).clamp(min=0) ** self.beta2
        if self.granularity == "token":
            return token
        row = forget.mean_rows(token)
        return row[forget.row] if self.granularity == "instance" else row.mean().expand_as(token)


@METHODS.register(
    "simsat", family="likelihood", erases="influence", targets=["records", "entity", "document", "topic"],
    access="weights", needs=["retain"], cost="2F+2B", scale="fsdp",
    source="Yang et al. 2025, arXiv 2505.11953", verified=["forgetting", "utility"],
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class SimSat(SatImp):
    """Saturation alone: ascent on the tokens that are still likely, as `wga` at equal settings.

    Weight p_t^β1.
    """

    beta2: Weight = 0.0
    forget_weight: Weight = 1.0


@METHODS.register(
    "simimp", family="likelihood", erases="influence", targets=["records", "entity", "document", "topic"],
    access="weights", needs=["retain"], cost="2F+2B", scale="fsdp",
    source="Yang et al. 2025, arXiv 2505.11953", verified=["forgetting", "utility"],
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class SimImp(SatImp):
    """Importance alone: ascent on the tokens that are hard to guess; memorized ones starve.

    Weight (1 − p_t)^β2, β2 = 5 as in their code.
    """

    beta1: Weight = 0.0
    beta2: Weight = 5.0
    forget_weight: Weight = 1.0
