"""Saliency: the weights that the forget loss depends on most."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from expunge.data.request import Request
from expunge.subjects.subject import Subject
from expunge.training.gradients import mean_gradient
from expunge.training.selections.base import SELECTIONS, Scored, Share

__all__ = ["SalUn"]


@SELECTIONS.register(
    "salun", unit="weight", cost="1F+1B over forget", source="Fan et al. 2023, arXiv 2310.12508"
)
@dataclass(frozen=True, kw_only=True)
class SalUn(Scored):
    """The weights with the largest |g_f|, the gradient of the forget NLL at θ_o.

    share 0.5, the paper's median threshold (on image models). Fan et al. 2023 (arXiv 2310.12508).
    """

    share: Share = 0.5

    def scores(
        self, subject: Subject, request: Request, names: Collection[str], seed: int
    ) -> dict[str, Tensor]:
        return {n: g.abs() for n, g in mean_gradient(subject, request.forget, names=names).items()}
