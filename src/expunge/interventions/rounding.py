"""Round to nearest, symmetric: ŵ = s·clip(round(w/s)), s = max|w| / (2^(b−1) − 1).

Rounding is simulated: integer codes times scales, in the model's own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.interventions.matrices import matrices

__all__ = [
    "GROUP",
    "Scope",
    "code_difference",
    "codes",
    "grid_codes",
    "grid_scale",
    "nearest_code",
    "quantize_",
]

Scope = Literal["row", "tensor", "group"]

GROUP = 32
"""Weights that share a scale in scope "group"."""


def grid_scale(weight: Tensor, bits: int, scope: Scope = "row", group: int = GROUP) -> Tensor:
    """s of every weight of a matrix [..., out, in], fp64, in a shape that broadcasts against it."""
    w = weight.detach().double().abs()
    if scope == "tensor":
        largest = w.amax()
    elif scope == "row":
        largest = w.amax(-1, keepdim=True)
    else:
        width = w.shape[-1]
        padded = nn.functional.pad(w, (0, -width % group))
        largest = padded.unflatten(-1, (-1, group)).amax(-1).repeat_interleave(group, -1)[..., :width]
    return largest / (2 ** (bits - 1) - 1)


def grid_codes(weight: Tensor, bits: int, scope: Scope = "row", group: int = GROUP) -> tuple[Tensor, Tensor]:
    """(codes, scales) of a matrix.

    In fp64, s·(2^(b−1) − 1) is max|w| again to the bit, so rounding twice changes nothing.
    """
    scale = grid_scale(weight, bits, scope, group)
    return nearest_code(weight.detach().double(), scale, bits), scale


def nearest_code(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """clip(round(w/s)); 0 where the scale is 0, and no −0."""
    top = 2 ** (bits - 1) - 1
    return torch.where(scale > 0, weight / scale, 0.0).round().clamp(-top, top) + 0.0


@torch.no_grad()
def quantize_(
    model: nn.Module, bits: int, scope: Scope = "row", embeddings: bool = False, group: int = GROUP
) -> int:
    """Round the model's matrices in place; how many weights were rounded."""
    rounded = 0
    for _, weight in matrices(model, embeddings):
        code, scale = grid_codes(weight, bits, scope, group)
        weight.copy_((code * scale).to(weight.dtype))
        rounded += weight.numel()
    return rounded


@torch.no_grad()
def codes(model: nn.Module, bits: int, scope: Scope = "row", embeddings: bool = False) -> dict[str, Tensor]:
    """The integer code of every weight that is rounded, by name; output channels in rows."""
    dtype = torch.int8 if bits <= 8 else torch.int32
    return {n: grid_codes(w, bits, scope)[0].to("cpu", dtype) for n, w in matrices(model, embeddings)}


def code_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Share of weights whose code differs; 0: the update was lost in rounding (if the scales agree too).

    Raises ValueError when the two come from different architectures.
    """
    if a.keys() != b.keys() or any(a[n].shape != b[n].shape for n in a):
        raise ValueError("codes of two different architectures")
    return sum(int((a[n] != b[n]).sum()) for n in a) / max(1, sum(t.numel() for t in a.values()))
