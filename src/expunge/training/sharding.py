"""Weights divided over the ranks (FSDP2): each holds a part of every tensor, gathered block by block.

FSDP sums the gradients itself, so a rank's losses need no other scale than in one process. What looks at
whole tensors (transforms, masks, a ball) is refused, never taken to act on a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from expunge import ranks
from expunge.errors import ConfigError, ExpungeError, Problem
from expunge.subjects.architecture import blocks
from expunge.subjects.subject import Subject

__all__ = ["check_axes", "check_task", "divide", "divided", "like", "rejoined", "whole"]

OPTIMIZERS = ("adamw", "sgd")


def check_axes(
    *,
    quantized: bool,
    transforms: bool,
    selections: bool,
    optimizer: str,
    reference: str,
    controls: Sequence[str],
) -> None:
    """Raise ConfigError with everything a run asks for that divided weights cannot have."""
    asked = {
        "lora.base": ("a quantized base", quantized, "Set lora.base: full"),
        "transform": ("a gradient transform", transforms, "Remove it"),
        "selection": ("a selection of weights", selections, "Remove it"),
        "train.optimizer": (optimizer, optimizer not in OPTIMIZERS, f"Use {' or '.join(OPTIMIZERS)}"),
        "reference": (reference, reference == "live", "Set reference: cache"),
        "control": (", ".join(controls), bool(controls), "Use early_stop, watch, cap or uwc"),
    }
    problems = [
        Problem(
            where, f"{what} does not go with weights divided over the processes", f"{fix}, or strategy: ddp"
        )
        for where, (what, wrong, fix) in asked.items()
        if wrong
    ]
    if problems:
        raise ConfigError(problems)


def check_task(task: Any) -> None:
    """Raise ConfigError where the reference would be a second model."""
    for frozen in task.frozen.values():
        if any("logits" in quantities for quantities in frozen.reads.values()):
            fix = "Use another method or retain loss, or strategy: ddp"
            raise ConfigError(Problem("reference", "distributions need a whole head beside the model", fix))
        if frozen.reads and frozen.mode == "live":
            fix = "Raise reference_budget, or set strategy: ddp"
            raise ConfigError(Problem("reference", "a live model cannot be kept beside divided weights", fix))


def divide(subject: Subject, device: str) -> None:
    """Divide the weights of a model, in place, over the ranks' devices of this type."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device, (ranks.world(),))
    for module in (*blocks(subject.model), subject.model):
        # also the root after a forward: what a probe gathered would be stale after the next step
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in subject.model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    for buffer in subject.model.buffers():
        buffer.data = buffer.to(device)
    left = [name for name, p in subject.model.named_parameters() if not isinstance(p, DTensor)]
    if left:
        raise ExpungeError(
            f"fsdp2 left {len(left)} tensors whole ({', '.join(left[:3])}): it is not in force"
        )


def divided(parameters: Sequence[Tensor]) -> bool:
    """Whether these are parts of weights."""
    return any(isinstance(p, DTensor) for p in parameters)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, gathered where it is divided: then every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor divided as the parameter is, where that is divided and has its shape."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


@torch.no_grad()
def rejoined(work: Subject, before: Subject) -> Subject:
    """`before`, a copy from before the weights were divided, with the weights they are now; on every rank."""
    parts = dict(work.model.named_parameters())
    for name, parameter in before.model.named_parameters():
        parameter.copy_(whole(parts[name]))
    return before
