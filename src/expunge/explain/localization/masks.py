"""Masks out of whole blocks and whole neurons, in the form every selection has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import ModelError, Problem
from expunge.explain.record_gradients import block_parameters
from expunge.subjects.architecture import MLP_OUTPUT, blocks, linear_weights, mlp

__all__ = ["Part", "block_mask", "inner_width", "neuron_mask", "part_of"]

Part = Literal["block", "mlp", "attention"]


def part_of(block: nn.Module, part: Part) -> nn.Module:
    """The block itself, its MLP, or its attention."""
    if part == "block":
        return block
    if part == "mlp":
        return mlp(block)
    for name, module in block.named_children():
        if name in ("self_attn", "attn", "attention", "self_attention"):
            return module
    raise ModelError(Problem(type(block).__name__, "has no attention that is known by name", "Use part: mlp"))


def block_mask(model: nn.Module, layers: Collection[int], part: Part) -> dict[str, Tensor | bool]:
    """All weights of this part of these blocks."""
    wanted = {id(p) for layer in layers for p in part_of(blocks(model)[layer], part).parameters()}
    parameters = dict(model.named_parameters())
    names = (name for layer in sorted(layers) for name in block_parameters(model)[layer])
    return {name: True for name in names if id(parameters[name]) in wanted}


def inner_width(model: nn.Module, layer: int) -> int:
    """F: the inputs of the matrix through which a block's MLP writes. Raises ModelError for experts."""
    return _sides(model, layer)[1][0][1]


def neuron_mask(model: nn.Module, chosen: Mapping[int, Tensor]) -> dict[str, Tensor | bool]:
    """{block: boolean [F]} → these neurons' weights: rows of the matrices in, columns of the matrix out."""
    mask: dict[str, Tensor | bool] = {}
    for layer, neurons in sorted(chosen.items()):
        if not neurons.any():
            continue
        shapes = {name: p.shape for name, p in model.named_parameters()}
        for name, width, dim in (side for sides in _sides(model, layer) for side in sides):
            view = [1] * len(shapes[name])
            view[dim] = width
            mask[name] = neurons.cpu().view(view).expand(shapes[name]).clone()
    return mask


_Side = tuple[str, int, int]
"""Name of a weight, how many neurons it has, along which of its dimensions."""


def _sides(model: nn.Module, layer: int) -> tuple[list[_Side], list[_Side]]:
    """(the matrices into a block's MLP, the one out of it)"""
    into: list[_Side] = []
    out: list[_Side] = []
    inner = {id(module) for module in mlp(blocks(model)[layer]).modules()}
    for name, module in linear_weights(model, [layer]).items():
        if id(module) in inner:
            weight: Tensor = module.weight  # type: ignore[assignment]
            turned = isinstance(module, Conv1D)  # stores [in, out]
            writes = MLP_OUTPUT.search(name) is not None
            dim = int(writes != turned)
            (out if writes else into).append((name, weight.shape[dim], dim))
    if len(out) != 1 or any(width != out[0][1] for _, width, _ in into):
        what = "its MLP does not write through one matrix"
        raise ModelError(Problem(f"{type(model).__name__}, block {layer}", what, "Use gradient_saliency"))
    return into, out
