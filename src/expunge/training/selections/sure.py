"""Whole output neurons by the norm of their forget gradient."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from expunge.data.request import Request
from expunge.subjects.subject import Subject
from expunge.training.gradients import mean_gradient
from expunge.training.selections.base import SELECTIONS, Mask, Selection, Share, keep_largest

__all__ = ["SURE"]


@SELECTIONS.register(
    "sure", unit="row", cost="1F+1B over forget", source="Zhang et al. 2024, arXiv 2410.16454"
)
@dataclass(frozen=True, kw_only=True)
class SURE(Selection):
    """The rows of all matrices (output neurons, tokens) with the largest ‖g_f row‖₂.

    One threshold for all matrices; vectors are not trained. share 0.1, the 90th percentile of the authors'
    README (99th in their code). Few weights and a larger lr let updates survive rounding to 4 bits. Their
    mask hook is never called by their loop; here the mask holds. Zhang et al. 2024 (arXiv 2410.16454).
    """

    share: Share = 0.1

    def select(self, subject: Subject, request: Request, names: Collection[str], seed: int) -> Mask:
        shapes = {n: p.shape for n, p in subject.model.named_parameters() if n in names and p.ndim >= 2}
        # a Conv1D holds its output neurons in columns
        turned = {f"{n}.weight" for n, m in subject.model.named_modules() if isinstance(m, Conv1D)}
        dims = {name: 0 if name in turned else -1 for name in shapes}
        gradients = mean_gradient(subject, request.forget, names=list(shapes))
        rows = keep_largest({n: g.norm(dim=dims[n]) for n, g in gradients.items()}, self.share)

        def whole(name: str, kept: Tensor | bool) -> Tensor | bool:
            if isinstance(kept, bool):
                return kept
            return kept.unsqueeze(dims[name]).expand(shapes[name]).clone()

        return {name: whole(name, kept) for name, kept in rows.items()}
