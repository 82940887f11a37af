"""Primal-dual unlearning: flat logits on forget, as far as the retain loss stays below its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Le
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.training.dual import DualMultiplier
from expunge.training.hooks import TrainingControl
from expunge.training.views import View


@METHODS.register(
    "pdu",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    scale="fsdp",
    source="Entesari et al. 2025, arXiv 2506.05314",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class PrimalDual(Objective):
    """Primal-dual unlearning: flatten the forget logits as far as a limit on the retain loss allows.

    min ℓ_f = mean_t (max_v z − mean_v z)² subject to retain loss ≤ ε. λ begins at the retain weight and
    follows λ ← [λ + η (R − ε)]_+ once per optimizer step after `warmup`, a share of the steps; see
    expunge.training.dual. ε is `limit`, by default (1 + slack)·R(θ_o). Entesari et al. 2025 (arXiv
    2506.05314); η = 1 and λ₀ = 1 are theirs, half the steps is their warm-up of 5 epochs in 10; they have no
    default for ε, and slack 0.1 is our choice.
    """

    reads: ClassVar[tuple[str, ...]] = ("logits",)
    eta: Positive = 1.0
    limit: Positive | None = None
    slack: Weight = 0.1
    warmup: Annotated[float, Ge(0), Le(1)] = 0.5
    maximum: Positive = math.inf

    def loss(self, forget: View) -> Tensor:
        logits = forget.logits
        return forget.mean_rows((logits.amax(-1) - logits.mean(-1)).square())

    def hooks(self, request: Request) -> Sequence[TrainingControl]:
        return [
            DualMultiplier(
                eta=self.eta, limit=self.limit, slack=self.slack, warmup=self.warmup, maximum=self.maximum
            )
        ]
