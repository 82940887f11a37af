"""Rounding that spares the input channels with large activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.request import Request
from expunge.interventions.activations import Inputs, calibrated
from expunge.interventions.base import INTERVENTIONS, SCALE_BITS, Count, Quantize, calibration_rows
from expunge.interventions.matrices import matrices
from expunge.interventions.rounding import grid_codes
from expunge.subjects.subject import Subject


@INTERVENTIONS.register(
    "awq", family="quantize", needs=["retain"], source="Lin et al. 2023, arXiv 2306.00978"
)
@dataclass(frozen=True, kw_only=True)
class AWQ(Quantize):
    """Scale up the input channels with large activations before rounding, and down again after it.

    Ŵ = Q(W·diag(s))·diag(s)⁻¹, s_j = (mean|x_j|)^α, α by grid search for the least ‖(Ŵ − W)X‖² on retain
    activations; α = 0 is rounding to nearest. Each matrix has its own s and α, counted as stored with it;
    Lin et al. 2023 share them where they fold into the layer before, and search clipping as well.
    """

    grid: Count = 20  # α = 0, 1/grid, …, (grid − 1)/grid
    samples: Count = 128

    def change(self, work: Subject, request: Request, seed: int) -> None:
        rows = calibration_rows(work, request, self.samples, self.name)
        for weight, inputs in calibrated(work, rows):
            if inputs is None:
                weight.copy_(rounded(weight, self.bits, self.group))
            else:
                weight.copy_(awq(weight, inputs, self.bits, self.group, self.grid))

    def stored_bits(self, model: nn.Module) -> dict[str, float]:
        """As in every grid, and s for each input channel."""
        widths = {name: weight.shape[-1] for name, weight in matrices(model)}
        return {name: bits + SCALE_BITS * widths[name] for name, bits in super().stored_bits(model).items()}


def awq(weight: Tensor, inputs: Inputs, bits: int, group: int, grid: int) -> Tensor:
    """The rounded weights [O, F] with the least error of those on the grid of α, fp64."""
    w = weight.detach().double()
    size = (inputs.size / max(1, inputs.count)).clamp(min=1e-4)
    found = []
    for step in range(grid):
        s = size ** (step / grid)
        s = s / (s.max() * s.min()).sqrt() if step else torch.ones_like(s)
        made = rounded(w * s, bits, group) / s
        found.append((inputs.error(made - w), made))
    return min(found, key=lambda pair: pair[0])[1]


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """Round to nearest, fp64."""
    code, scale = grid_codes(weight, bits, "group" if group else "row", group)
    return code * scale
