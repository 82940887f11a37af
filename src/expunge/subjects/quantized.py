"""A base in 8 or 4 bits under a LoRA: less memory while training, never what ships.

The codes are our own, so they work on every device and need no library: weights are kept as integers and
dequantized where they are used, in the forward and again in the backward pass. Nothing is kept from the
forward pass, so recomputation and evaluation between steps change no gradient.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from expunge.subjects.architecture import blocks, linear_targets

__all__ = ["Bits", "QuantizedLinear", "dequantized", "nf4_levels", "quantize_base", "quantized"]

Bits = Literal["int8", "nf4"]

BLOCK = 64
"""Weights that share a scale in nf4."""


@cache
def nf4_levels() -> Tensor:
    """The 16 levels of NormalFloat-4, [-1, 1]: quantiles of N(0, 1), eight above zero, seven below, and zero.

    Dettmers et al. 2023 (arXiv 2305.14314).
    """
    tail = 1 - (1 / 32 + 1 / 30) / 2

    def quantiles(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(tail, 0.5, count + 1, dtype=torch.float64)[:-1])

    levels = torch.cat([-quantiles(7), torch.zeros(1, dtype=torch.float64), quantiles(8).flip(0)])
    return (levels / levels.max()).float()


def quantized(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """(codes, scales) of a matrix [out, in].

    int8: symmetric, round to nearest, a scale per row. nf4: the nearest level times the largest |w| of each
    block of 64 along the row-major order; two codes to a byte, scales not quantized again.
    """
    weight = weight.detach().float()
    if bits == "int8":
        scales = weight.abs().amax(1, keepdim=True) / 127
        codes = torch.where(scales > 0, weight / scales, 0.0).round()
        return codes.to(torch.int8), scales
    flat = pad(weight.reshape(-1), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1, keepdim=True)
    levels = nf4_levels().to(weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(torch.where(scales > 0, flat / scales, 0.0), between).to(torch.uint8).view(-1, 2)
    return codes[:, 0] * 16 + codes[:, 1], scales


def dequantized(codes: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The matrix that codes and scales stand for."""
    if codes.dtype == torch.int8:
        return (codes * scales).to(dtype)
    both = torch.stack([codes >> 4, codes & 15], dim=1).view(-1, BLOCK)
    flat = nf4_levels().to(codes.device)[both.int()] * scales
    return flat.view(-1)[: shape.numel()].view(shape).to(dtype)


class QuantizedLinear(nn.Linear):
    """A frozen linear map that holds codes for weights; a Conv1D becomes one too, [out, in]."""

    scales: Tensor

    def __init__(self, base: Any, bits: Bits):
        weight = base.weight.T if isinstance(base, Conv1D) else base.weight
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        codes, scales = quantized(weight, bits)
        del self.weight  # codes are no parameters: they can have no gradient
        self.register_buffer("weight", codes)
        self.register_buffer("scales", scales)
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        out = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Ŵ [out, in]."""
        return dequantized(self.weight, self.scales, torch.Size((self.out_features, self.in_features)), dtype)


class _Product(torch.autograd.Function):
    """x·Ŵᵀ; Ŵ is made again for the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.matrix(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.matrix(gradient.dtype), None


def quantize_base(model: nn.Module, bits: Bits) -> int:
    """Quantize the blocks' linear maps in place; how many. Norms, routers, embeddings and head stay."""
    names = set(linear_targets(model))
    count = 0
    for parent in list(blocks(model).modules()):
        for name, module in list(parent.named_children()):
            if name in names and isinstance(module, (nn.Linear, Conv1D)):
                setattr(parent, name, QuantizedLinear(module, bits))
                count += 1
    return count
