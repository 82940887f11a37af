"""A small push off a stationary point."""

from __future__ import annotations

from typing import Any

import torch

from expunge.stats import seed_from
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable

__all__ = ["perturb"]


@torch.no_grad()
def perturb(subject: Subject, scale: float, seed: int) -> None:
    """Add N(0, (scale·σ)²) to every trained tensor, in place; σ is the spread of the tensor's own weights.

    Of an adapter only B moves, which starts at zero; there σ is that of the matrix it stands beside.
    """
    modules = dict(subject.model.named_modules())
    for name, parameter in trainable(subject.model).items():
        spread: Any = parameter
        if ".lora_" in name:
            if ".lora_B." not in name:
                continue
            base: Any = modules[name.partition(".lora_")[0]].base_layer
            spread = base.weight
        generator = torch.Generator().manual_seed(seed_from(seed, "perturb", name))
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=scale * float(spread.float().std()))
