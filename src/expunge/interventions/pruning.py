"""Setting weights to zero: which ones, and how many to the last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.interventions.activations import Inputs, calibrated, inputs_of
from expunge.interventions.matrices import matrices
from expunge.subjects.subject import Subject

__all__ = ["lowest", "magnitude_prune_", "prune_", "set_difference_", "wanda_prune_", "wanda_scores"]


def lowest(scores: Tensor, share: float) -> Tensor:
    """Mask of the round(share·n) smallest of each row's n scores; of equal ones the first."""
    count = round(share * scores.shape[-1])
    order = scores.argsort(dim=-1, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :count], True)


@torch.no_grad()
def magnitude_prune_(model: nn.Module, sparsity: float) -> int:
    """Zero the smallest |w| of every matrix, in place; how many weights were chosen.

    Exactly round(sparsity·n) of a matrix's n weights.
    """
    return sum(
        prune_(weight, lowest(weight.abs().reshape(-1), sparsity).view(weight.shape))
        for _, weight in matrices(model)
    )


@torch.no_grad()
def wanda_prune_(subject: Subject, rows: Sequence[Encoded], sparsity: float) -> int:
    """Zero the smallest |W_ij|·‖x_j‖₂ of every row, in place; how many weights were chosen.

    Block after block: the inputs of a block are those the pruned blocks before it give. Exactly
    round(sparsity·inputs) of each row. A matrix that no token of `rows` reaches is pruned by magnitude.
    Sun et al. 2023 (arXiv 2306.11695).
    """
    return sum(
        prune_(weight, lowest(wanda_scores(weight, inputs), sparsity))
        for weight, inputs in calibrated(subject, rows)
    )


@torch.no_grad()
def set_difference_(
    subject: Subject, forget: Sequence[Encoded], retain: Sequence[Encoded], *, q: float, p: float
) -> int:
    """Zero what matters to forget and not to retain, in place: the top share q for one without the top p.

    Importance is |W_ij|·‖x_j‖₂ on either set, compared within a row. How many weights were chosen.
    Wei et al. 2024 (arXiv 2402.05162).
    """
    on_forget, on_retain = inputs_of(subject, forget), inputs_of(subject, retain)
    return sum(
        prune_(
            weight,
            ~lowest(wanda_scores(weight, on_forget.get(name)), 1 - q)
            & lowest(wanda_scores(weight, on_retain.get(name)), 1 - p),
        )
        for name, weight in matrices(subject.model)
        if name in on_forget and name in on_retain
    )


def wanda_scores(weight: Tensor, inputs: Inputs | None) -> Tensor:
    """|W_ij|·‖x_j‖₂, fp64; without inputs |W_ij|."""
    size = weight.detach().double().abs()
    return size if inputs is None else size * inputs.norms


def prune_(weight: Tensor, chosen: Tensor) -> int:
    """Zero the chosen weights in place; how many they are."""
    weight.masked_fill_(chosen, 0.0)
    return int(chosen.sum())
