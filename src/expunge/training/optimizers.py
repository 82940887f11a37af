"""The optimizers by name; all but AdamW come from libraries or follow their paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from expunge.training.settings import TrainSettings

__all__ = ["make_optimizer"]


def make_optimizer(parameters: Sequence[Tensor], settings: TrainSettings) -> Optimizer:
    """The optimizer that `settings.optimizer` names."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
