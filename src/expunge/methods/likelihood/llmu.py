"""Ascent, random answers and a KL on normal data, until the forget loss is high enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.training.hooks import TrainingControl
from expunge.training.views import View


@METHODS.register(
    "llmu",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic", "capability"],
    access="weights",
    needs=["retain", "reference"],
    cost="(2+K)F+(2+K)B",
    scale="ddp",
    source="Yao, Xu and Liu 2023, arXiv 2310.10683",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class LLMU(Objective):
    """Ascent on forget, learning of random answers to it, and a KL that holds retain answers.

    ℓ_f = −a·m_i + b·(1/K) Σ_k m(random answer k | forget prompt), two terms of the log beside `retain`.
    Random answers are those of retain records (refusals without a retain set), drawn anew each epoch.
    Training stops once the mean forget NLL of a step exceeds `limit`. Yao, Xu and Liu 2023 (arXiv
    2310.10683); a = 0.5, b = 1, K = 5, the limit of 100 nats, lr 2e-6 and batch 2 are the values of their
    code, whose "KL" is the cross entropy H(p_ref, p) over all positions.
    """

    ascent: Positive = 0.5
    mismatch: Weight = 1.0
    draws: Annotated[int, Ge(1)] = 5
    limit: Positive = 100.0
    retain: str = "kl"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("mean_nll", *(f"{name}.mean_nll" for name in self._variants))

    @property
    def _variants(self) -> list[str]:
        return [f"mismatch{k}" for k in range(self.draws)]

    def loss(self, forget: View) -> Mapping[str, Tensor]:
        random = torch.stack([getattr(forget, name).mean_nll for name in self._variants])
        return {"ascent": -self.ascent * forget.mean_nll, "mismatch": self.mismatch * random.mean(0)}

    def hooks(self, request: Request) -> Sequence[TrainingControl]:
        return [_ForgetLimit(self.ascent, self.limit)]


class _ForgetLimit(TrainingControl):
    """Stops after the step whose mean forget NLL exceeds the limit."""

    def __init__(self, weight: float, limit: float):
        self.weight, self.limit = weight, limit
        self.nll = 0.0

    def observe(self, terms: dict[str, float]) -> None:
        self.nll = -terms["ascent"] / self.weight

    def after_step(self, step: int, subject: Any) -> bool:
        return self.nll > self.limit

    def finish(self, subject: Any) -> str | None:
        return f"llmu: stopped at a forget NLL of {self.nll:.4g}" if self.nll > self.limit else None
