"""Weight attribution: what forgetting gains by a weight, less what retain would do to win it back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from expunge.data.request import Request
from expunge.subjects.subject import Subject
from expunge.training.gradients import fisher_diagonal, mean_gradient
from expunge.training.selections.base import SELECTIONS, Scored, Share, retain_of

__all__ = ["WAGLE"]

FISHER_RECORDS = 64
"""Retain records that the curvature is estimated on: one backward pass each, for one number."""


@SELECTIONS.register(
    "wagle",
    unit="weight",
    cost="1F+1B over forget and retain",
    source="Jia et al. 2024, arXiv 2410.17509",
)
@dataclass(frozen=True, kw_only=True)
class WAGLE(Scored):
    """The weights with the largest |(θ − g_r/μ) ⊙ g_f|, both NLL gradients taken at θ_o.

    μ stands for the diagonal of the retain Hessian; ours by default is the mean of the empirical Fisher's
    diagonal over all weights selected from, on 64 retain records. μ → ∞ leaves |θ ⊙ g_f|. share 0.8 (the
    authors' code: 0.8 to 0.95 on TOFU, 0.6 on WMDP). Jia et al. 2024 (arXiv 2410.17509).
    """

    share: Share = 0.8
    mu: Annotated[float, Gt(0)] | None = None

    def scores(
        self, subject: Subject, request: Request, names: Collection[str], seed: int
    ) -> dict[str, Tensor]:
        records = retain_of(request, self)
        forget = mean_gradient(subject, request.forget, names=names)
        retain = mean_gradient(subject, records, names=names)
        mu = self.mu or self.curvature(subject, request, names)
        weights = dict(subject.model.named_parameters())
        return {n: ((weights[n].detach() - retain[n] / mu) * g).abs() for n, g in forget.items()}

    def curvature(self, subject: Subject, request: Request, names: Collection[str]) -> float:
        """The mean of the retain Fisher's diagonal."""
        some = request.retain[:: -(-len(request.retain) // FISHER_RECORDS)]
        diagonal = fisher_diagonal(subject, some, names=names)
        count = sum(d.numel() for d in diagonal.values())
        return float(sum(d.double().sum() for d in diagonal.values())) / count
