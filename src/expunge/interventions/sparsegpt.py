"""Pruning with the error of each weight made good by the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.interventions.activations import calibrated
from expunge.interventions.base import INTERVENTIONS, Count, Damping, Prune, calibration_rows
from expunge.interventions.columns import inverse_factor, solve_columns
from expunge.interventions.pruning import lowest
from expunge.subjects.subject import Subject


@INTERVENTIONS.register(
    "sparsegpt", family="prune", needs=["retain"], source="Frantar & Alistarh 2023, arXiv 2301.00774"
)
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Prune):
    """Set weights to zero block of columns by block; later columns make good what each zero lost.

    Chosen in each block: the smallest w²/U_jj², H⁻¹ = UᵀU, H = XXᵀ + λI from retain activations (the OBS
    saliency given the columns already decided). Exactly round(sparsity·n) of a matrix's n weights; those that
    are 0 already are among them and stay so. A matrix that no activation reaches (an expert) is pruned by
    magnitude.
    """

    damp: Damping = 0.01  # λ in units of H's mean diagonal
    block: Count = 128
    samples: Count = 128

    def change(self, work: Subject, request: Request, seed: int) -> None:
        rows = calibration_rows(work, request, self.samples, self.name)
        for weight, inputs in calibrated(work, rows):
            flat = weight.reshape(-1, weight.shape[-1])
            gram = torch.eye(flat.shape[1], device=flat.device) if inputs is None else inputs.gram
            weight.copy_(sparsegpt(flat, gram, self.sparsity, self.damp, self.block).view(weight.shape))


def sparsegpt(weight: Tensor, gram: Tensor, sparsity: float, damp: float, block: int) -> Tensor:
    """The pruned weights [O, F], fp64."""
    rows, zero = weight.shape[0], weight == 0

    def mask(start: int, w: Tensor, diagonal: Tensor) -> Tensor:
        ends = (round(sparsity * rows * column) for column in (start, start + w.shape[1]))
        count = -next(ends) + next(ends)  # so that the blocks' counts add up
        gone = zero[:, start : start + w.shape[1]]
        saliency = (w / diagonal).square().masked_fill(gone, -1.0)
        return lowest(saliency.reshape(-1), count / w.numel()).view(w.shape) | gone

    return prune_columns(weight, inverse_factor(gram, damp), mask, block)


def prune_columns(
    weight: Tensor, factor: Tensor, mask: Callable[[int, Tensor, Tensor], Tensor], block: int
) -> Tensor:
    """The weights with `mask` of every block at zero and later columns moved to make good for it."""

    def choose(start: int, w: Tensor, diagonal: Tensor) -> Callable[[int, Tensor], Tensor]:
        gone = mask(start, w, diagonal)
        return lambda j, column: column.masked_fill(gone[:, j], 0.0)

    return solve_columns(weight, factor, choose, block=block)
