"""Positive data in the place of the forget answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.methods.base import METHODS, Objective
from expunge.training.views import View


@METHODS.register(
    "relearn",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic", "document"],
    access="weights",
    needs=["retain", "reference"],
    cost="2F+2B",
    scale="ddp",
    source="Xu et al. 2025, arXiv 2502.11190",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class ReLearn(Objective):
    """Learn vague, safe answers in the place of the forget answers, with ce and kl on retain.

    ℓ_f = mean NLL of a vague answer (a line drawn by seed, record and epoch; of a document its own text
    without names and numbers); gold is never among the labels. Xu et al. 2025 (arXiv 2502.11190) have a large
    model rewrite answers and questions, and train a LoRA for 4 epochs at lr 1e-5; templates stand in for it.
    Fluent, but paraphrases and sampling leak. The name is the paper's; the attack that relearns what was
    forgotten is another thing.
    """

    reads: ClassVar[tuple[str, ...]] = ("generic.mean_nll",)
    retain: str = "ce_kl"

    def loss(self, forget: View) -> Tensor:
        return forget.generic.mean_nll
