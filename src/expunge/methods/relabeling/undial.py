"""Self-distillation with the gold logit lowered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from expunge.data.request import Request
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods.base import METHODS, Objective, Weight
from expunge.progress import say
from expunge.subjects.subject import Subject
from expunge.training.views import View


@METHODS.register(
    "undial",
    family="relabeling",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["reference"],
    cost="1F+1B",
    scale="ddp",
    source="Dong et al. 2024, arXiv 2402.10052",
    verified=["forgetting"],
)
@dataclass(frozen=True, kw_only=True)
class UNDIAL(Objective):
    """Self-distillation with the logit of the gold token lowered.

    ℓ_f = mean_t CE(softmax(z_ref − β e_y), p). The target is fixed: gold keeps σ(logit p_y^ref − β), the
    rivals their ratios. Where logit p_y^ref > β it still has more than half, and a warning says so. Dong et
    al. 2024 (arXiv 2402.10052): β 10, lr 1e-4, 10 epochs, no retain loss (values of their code as the usual
    harness runs it).
    """

    reads: ClassVar[tuple[str, ...]] = ("logits", "reference.logits")
    beta: Weight = 10.0
    retain: str = "none"

    def loss(self, forget: View) -> Tensor:
        z_ref, gold = forget.reference.logits, forget.targets[:, None]
        target = z_ref.scatter_add(1, gold, z_ref.new_full(gold.shape, -self.beta)).softmax(-1)
        return -forget.mean_rows((target * forget.logits.log_softmax(-1)).sum(-1))

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        rows = score_sheet(subject, make_sheet(subject.encoder, request.forget, "forget")).rows
        logp = np.concatenate([row.logprobs for row in rows]).astype(float)
        with np.errstate(divide="ignore"):
            logit = logp - np.log(-np.expm1(logp))
        share = float((logit > self.beta).mean()) if len(logit) else 0.0
        if share:
            what = f"at {share:.0%} of the answer tokens gold keeps more than half of the target"
            say(f"undial: {what} (logit p > β = {self.beta:g}). Raise beta to remove them")
        return {}
