"""Second-order unlearning: gradient difference under the optimizer Sophia."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, Objective, Weight
from expunge.training.views import View

if TYPE_CHECKING:
    from expunge.training.settings import TrainSettings


@METHODS.register(
    "soul",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    limits="the ascent has no bound: without a control after it the model dies",
    scale="ddp",
    source="Jia et al. 2024, arXiv 2404.18239",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class SOUL(Objective):
    """Gradient difference taken by a second-order optimizer, Sophia.

    ℓ_f = −m_i, cross-entropy on retain with λ = 2. What the train settings leave open becomes SOUL's:
    optimizer `sophia`, weight decay 0.1. Its configs have lr 5e-6 and 5 epochs; set those yourself. For its
    refusal variant take `idk` with λ = 5, lr 1e-5 and the optimizer. See `Sophia` in
    expunge.training.optimizers for which Sophia this is. Jia et al. 2024 (arXiv 2404.18239).
    """

    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)

    retain: str = "ce"
    retain_weight: Weight = 2.0

    def loss(self, forget: View) -> Tensor:
        return -forget.mean_nll

    def settings_for(self, settings: TrainSettings, request: Request) -> TrainSettings:
        own: dict[str, Any] = {"optimizer": "sophia", "weight_decay": 0.1}
        return settings.model_copy(
            update={k: v for k, v in own.items() if k not in settings.model_fields_set}
        )
