"""Rounding with the error of each column made good by the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.request import Request
from expunge.interventions.activations import calibrated
from expunge.interventions.base import INTERVENTIONS, Count, Damping, Quantize, calibration_rows
from expunge.interventions.columns import inverse_factor, solve_columns
from expunge.interventions.rounding import grid_scale, nearest_code
from expunge.subjects.subject import Subject

BLOCK = 128
"""Columns between two corrections of all that follow, where a row has one scale."""


@INTERVENTIONS.register(
    "gptq", family="quantize", needs=["retain"], source="Frantar et al. 2022, arXiv 2210.17323"
)
@dataclass(frozen=True, kw_only=True)
class GPTQ(Quantize):
    """Round column after column; the columns still unrounded make good what each rounding lost.

    min ‖(Ŵ − W)X‖², Hessian H = XXᵀ + λI from retain activations, block after block of the model; a group's
    scale comes from its weights as they stand when it is reached. Weights that are exactly 0 stay 0. A matrix
    that no activation reaches (an expert) is rounded to nearest. In the order of the columns, as in Frantar
    et al. 2022 without act-order.
    """

    damp: Damping = 0.01  # λ in units of H's mean diagonal
    samples: Count = 128

    def change(self, work: Subject, request: Request, seed: int) -> None:
        rows = calibration_rows(work, request, self.samples, self.name)
        for weight, inputs in calibrated(work, rows):
            gram = torch.eye(weight.shape[-1], device=weight.device) if inputs is None else inputs.gram
            flat = weight.reshape(-1, weight.shape[-1])
            weight.copy_(gptq(flat, gram, self.bits, self.group, self.damp).view(weight.shape))


def gptq(weight: Tensor, gram: Tensor, bits: int, group: int, damp: float) -> Tensor:
    """The rounded weights [O, F], fp64; a diagonal Hessian gives rounding to nearest."""
    zero = weight == 0
    row_scale = None if group else grid_scale(weight, bits)

    def choose(start: int, block: Tensor, _: Tensor) -> Callable[[int, Tensor], Tensor]:
        scale = (grid_scale(block, bits) if row_scale is None else row_scale)[:, 0]

        def value(j: int, column: Tensor) -> Tensor:
            return (nearest_code(column, scale, bits) * scale).masked_fill(zero[:, start + j], 0.0)

        return value

    return solve_columns(weight, inverse_factor(gram, damp), choose, block=group or BLOCK)
