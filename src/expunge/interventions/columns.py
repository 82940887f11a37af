"""Columns decided one after another, each one's error made good by those not yet decided.

The core that GPTQ (Frantar et al. 2022, arXiv 2210.17323) and SparseGPT (Frantar & Alistarh 2023, arXiv
2301.00774) share. For a row w of a linear map with inputs X and H = XXᵀ + λI, giving w_j the value v costs
least when the later columns move by −(w_j − v)/U_jj · U_j,j+1: with H⁻¹ = UᵀU, U upper triangular.

Shapes: O outputs, F inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Choose", "inverse_factor", "solve_columns"]

Choose = Callable[[int, Tensor, Tensor], Callable[[int, Tensor], Tensor]]
"""(first column, its block as it stands [O, b], U_jj [b]) → (number in the block, column) → its value."""


def inverse_factor(gram: Tensor, damp: float) -> Tensor:
    """U with H⁻¹ = UᵀU, H = gram + damp·mean(diag)·I; [F, F], upper triangular."""
    h = gram.double().clone()
    mean = h.diagonal().mean()
    h.diagonal().add_(damp * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)


def solve_columns(weight: Tensor, factor: Tensor, choose: Choose, *, block: int) -> Tensor:
    """The weights [O, F] after every column took its value, fp64; corrections leave a block all at once."""
    w = weight.detach().double().clone()
    width = w.shape[1]
    for start in range(0, width, block):
        stop = min(start + block, width)
        value = choose(start, w[:, start:stop], factor.diagonal()[start:stop])
        errors = torch.zeros_like(w[:, start:stop])
        for j in range(start, stop):
            new = value(j - start, w[:, j])
            error = (w[:, j] - new) / factor[j, j]
            w[:, j] = new
            w[:, j + 1 : stop] -= error[:, None] * factor[j, j + 1 : stop]
            errors[:, j - start] = error
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return w
