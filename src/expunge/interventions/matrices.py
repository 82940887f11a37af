"""The matrices that compressions change: those of the blocks, output channels in rows, each once."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.subjects.architecture import blocks

__all__ = ["linear_maps", "matrices"]


def matrices(model: nn.Module, embeddings: bool = False) -> Iterator[tuple[str, Tensor]]:
    """(name, weights as a view [..., output channels, inputs]), each once however often it is tied."""
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    for name, parameter in (model if embeddings else blocks(model)).named_parameters():
        if parameter.ndim >= 2:
            yield name, parameter.mT if id(parameter) in transposed else parameter


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps behind these matrices, by the same names; experts kept as one tensor have none."""
    return {
        f"{name}.weight": module
        for name, module in blocks(model).named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
