"""Maximum entropy on the forget answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from expunge.methods.base import METHODS, Objective, Weight
from expunge.training.views import View


@METHODS.register(
    "me",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    scale="fsdp",
    source="Yuan et al. 2024, arXiv 2410.08109",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class MaximumEntropy(Objective):
    """Make every answer token a guess: pull the forget distributions toward the uniform one.

    ℓ_f = mean_t KL(U‖p_t), U uniform over the vocabulary. KL(U‖p) = logsumexp(z) − mean(z) − log V: bounded
    below by 0, gradient p − 1/V, so it pushes memorized tokens hardest. `model_to_uniform` takes KL(p‖U) =
    log V − H(p) in [0, log V], which starves as p → 1. Yuan et al. 2024 (arXiv 2410.08109); the forget weight
    0.1 is their code's for TOFU (0.5 for real-world facts, 1 for continual requests). Here answer tokens
    count; in their code question and padding do too.
    """

    reads: ClassVar[tuple[str, ...]] = ("logits",)
    direction: Literal["uniform_to_model", "model_to_uniform"] = "uniform_to_model"
    forget_weight: Weight = 0.1

    def loss(self, forget: View) -> Tensor:
        logits = forget.logits
        if self.direction == "uniform_to_model":
            divergence = logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])
        else:
            logp = logits.log_softmax(-1)
            divergence = (logp.exp() * logp).sum(-1) + math.log(logits.shape[-1])
        return forget.mean_rows(divergence)
