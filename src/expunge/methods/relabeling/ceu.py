"""Cross-entropy unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import one_hot

from expunge.methods.base import METHODS, Objective
from expunge.training.views import View


@METHODS.register(
    "ceu",
    family="relabeling",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=[],
    cost="1F+1B",
    scale="fsdp",
    source="Yang 2025, arXiv 2503.01224",
    verified=["forgetting"],
)
@dataclass(frozen=True, kw_only=True)
class CEU(Objective):
    """Train toward the model's own distribution without the gold token; stops by itself.

    ℓ_f = mean_t CE(q, p), q = sg softmax(z with z_y = −∞) taken anew at every step. Its value is H(q) −
    log(1 − p_y), its gradient p_y·(e_y − q), that of unlikelihood: full at memorized tokens, none at
    forgotten ones, so it stops by itself. `skip` leaves out the first answer tokens (the usual harness skips
    1); a row with no more than these counts 0. No retain loss in the original, Yang 2025 (arXiv 2503.01224).
    """

    reads: ClassVar[tuple[str, ...]] = ("logits",)
    skip: Annotated[int, Ge(0)] = 0
    retain: str = "none"

    def loss(self, forget: View) -> Tensor:
        z = forget.logits
        gold = one_hot(forget.targets, z.shape[-1]).bool()
        rivals = z.detach().masked_fill(gold, float("-inf")).softmax(-1)
        logp = z.log_softmax(-1).masked_fill(rivals == 0, 0.0)  # 0 · −∞ would be NaN
        start = forget.num_tokens.cumsum(0) - forget.num_tokens
        kept = torch.arange(len(z), device=z.device) - start[forget.row] >= self.skip
        losses = -(rivals * logp).sum(-1) * kept
        return forget.sum_rows(losses) / forget.sum_rows(kept.to(losses.dtype)).clamp(min=1)
