"""FILA: a LoRA that starts in the directions of each matrix that matter to forget and not to retain."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.errors import DataError, ModelError, Problem
from expunge.subjects.adapters import lora_modules, move_base, transposed
from expunge.subjects.subject import Subject
from expunge.training.gradients import fisher_diagonal

__all__ = ["EPSILON", "fila_factors", "row_scores", "start_fila"]

EPSILON = 1e-5


def row_scores(forget: Tensor, retain: Tensor) -> Tensor:
    """s_i = sqrt(Σ_j F_f,ij / (F_r,ij + 1e-5)) of the rows of [out, in] squared gradients: [out]."""
    return (forget / (retain + EPSILON)).sum(1).sqrt()


def fila_factors(weight: Tensor, scores: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A [r, in], B [out, r]) from the rank-r SVD of diag(s)·W ≈ U Σ Rᵀ.

    A = (R Σ^½)ᵀ, B = diag(1/(s + 1e-5)) U Σ^½: B·A is the part of W [out, in] that scores highest. Factors
    beyond the rank of W are zero.
    """
    u, sigma, rows = torch.linalg.svd(scores[:, None] * weight, full_matrices=False)
    root = sigma[:rank].sqrt()
    down = weight.new_zeros(rank, weight.shape[1])
    up = weight.new_zeros(weight.shape[0], rank)
    down[: len(root)] = root[:, None] * rows[:rank]
    up[:, : len(root)] = u[:, :rank] * root / (scores + EPSILON)[:, None]
    return down, up


def start_fila(subject: Subject, request: Request) -> None:
    """Start the subject's LoRA there, and take it off the base weights: the model stays what it was.

    F are mean squared gradients over all forget and all retain rows, one backward pass a row; a resumed run
    takes them again. Cha et al. 2024 (arXiv 2408.06621). Raises DataError without a retain set.
    """
    if not request.retain:
        raise DataError(Problem("lora.start", "fila weighs forget against retain", "Bring a retain set"))
    layers = dict(lora_modules(subject.model))
    coarse = [n for n, layer in layers.items() if not layer.get_base_layer().weight.is_floating_point()]
    if coarse:
        what = f"fila changes base weights, and {coarse[0]} is quantized"
        raise ModelError(Problem("lora.start", what, "Use start: zero"))
    names = [f"{name}.base_layer.weight" for name in layers]
    forget, retain = (
        fisher_diagonal(subject, side, names=names) for side in (request.forget, request.retain)
    )
    for (_, layer), key in zip(layers.items(), names, strict=True):
        base = layer.get_base_layer()
        turn = (lambda t: t.T) if transposed(base) else (lambda t: t)
        scores = row_scores(turn(forget[key]), turn(retain[key]))
        move_base(layer, *fila_factors(turn(base.weight.detach()).float(), scores, layer.r["default"]))
