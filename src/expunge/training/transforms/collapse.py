"""Collapse of the strongest directions of the forget gradient, matrix by matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from expunge.training.transforms.base import TRANSFORMS, Gradients, GradientScene, Transform

__all__ = ["Collapse", "collapsed"]


@TRANSFORMS.register("collapse", source="Sondej et al. 2026, arXiv 2606.17168", cost="one SVD per matrix")
@dataclass(frozen=True, kw_only=True)
class Collapse(Transform):
    """Shrinks the top q singular directions of g_f, which forget and all other text share, in each matrix.

    Soft: σ_i → σ_q²/σ_i for i ≤ q (σ_q/σ_i on the left and on the right), so the largest becomes the
    smallest; hard: σ_i → 0. Directions beyond q stay. q is capped at the matrix's rank: σ_q = 0 would wipe
    out everything; a hard collapse at full rank does. Vectors (norms, biases) are left as they are. q = 512,
    soft (the authors' code, on the matrices of the MLPs: add a selection). Sondej et al. 2026
    (arXiv 2606.17168).
    """

    q: Annotated[int, Ge(0)] = 512
    hard: bool = False

    def rectify(self, forget: Gradients, retain: Gradients, scene: GradientScene) -> Gradients:
        return [collapsed(f, self.q, hard=self.hard) for f in forget]


def collapsed(gradient: Tensor, q: int, *, hard: bool = False) -> Tensor:
    """G̃ [..., m, n] with the top q singular directions of every matrix collapsed; see `Collapse`.

    By the full SVD, which is deterministic. ⟨G̃, G⟩ ≥ 0.
    """
    if gradient.ndim > 2:  # experts
        return torch.stack([collapsed(matrix, q, hard=hard) for matrix in gradient])
    if gradient.ndim < 2 or q == 0:
        return gradient
    left, sizes, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    noise = sizes[0] * max(gradient.shape) * torch.finfo(sizes.dtype).eps
    q = min(q, int((sizes > noise).sum()))
    if q == 0:
        return gradient
    top = sizes[:q]
    change = (torch.zeros_like(top) if hard else top[-1] ** 2 / top) - top
    return gradient + ((left[:, :q] * change) @ right[:q]).to(gradient.dtype)
