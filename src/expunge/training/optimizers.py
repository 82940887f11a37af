"""The optimizers by name: `adamw`, `adamw_8bit`, `sgd` (no momentum), `sophia`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from expunge.errors import require
from expunge.training.settings import TrainSettings

__all__ = ["Sophia", "make_optimizer"]


def make_optimizer(parameters: Sequence[Tensor], settings: TrainSettings) -> Optimizer:
    """The optimizer that `settings.optimizer` names.

    `adamw_8bit` (Dettmers et al. 2021, arXiv 2110.02861) keeps its moments in 8 bits, tensors below 4,096
    weights apart. It raises MissingDependency without bitsandbytes.
    """
    plain: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, **plain)
    if settings.optimizer == "sophia":
        return Sophia(parameters, betas=settings.betas or (0.9, 0.95), **plain)
    plain["betas"] = settings.betas or (0.9, 0.999)
    if settings.optimizer == "adamw_8bit":
        return require("bitsandbytes", why="optimizer: adamw_8bit").optim.AdamW8bit(parameters, **plain)
    return torch.optim.AdamW(parameters, **plain)


class Sophia(Optimizer):
    """A clipped second-order step: θ ← θ(1 − lr·wd) − lr·sign(m)·min(|m|/(ρ·s·h + 1e-15), 1).

    m ← β₁·m + (1−β₁)·g, h ← β₂·h + (1−β₂)·g², both from zero and without bias correction. No coordinate moves
    more than lr, decay aside. β (0.9, 0.95), ρ 0.04, s 5120 are those of SOUL's configs (Jia et al. 2024,
    arXiv 2404.18239; their weight decay is 0.1), where h is refreshed at every step from the squared gradient
    of the batch. Two other variants are not this one: Sophia-G itself (Liu et al. 2023, arXiv 2305.14342)
    samples the labels for h and refreshes it every tenth step, and SOUL's released code averages m twice a
    step, which makes its decay β₁².
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        rho: float = 0.04,
        batch_constant: float = 5120,
        weight_decay: float = 0.1,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "rho": rho,
            "batch_constant": batch_constant,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"], state["hessian"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        mean, hessian, (first, second) = state["mean"], state["hessian"], group["betas"]
        mean.lerp_(gradient, 1 - first)
        hessian.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = group["rho"] * group["batch_constant"] * hessian + 1e-15
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(mean.sign() * (mean.abs() / scale).clamp(max=1), alpha=-group["lr"])
