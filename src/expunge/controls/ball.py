"""A ball around the original weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.subjects.adapters import lora_modules
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable
from expunge.training.hooks import TrainingControl

__all__ = ["Ball"]


@CONTROLS.register(
    "ball",
    when="during",
    bounds="distance from θ_o",
    guarantee="‖θ − θ_o‖ ≤ r after every step",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class Ball(Control):
    """After each optimizer step, project the weights onto { ‖θ − θ_o‖ ≤ r }.

    l2: θ_o + (θ − θ_o)·min(1, r/‖θ − θ_o‖₂), which globally is model mixing; linf: the difference clamped.
    `relative` multiplies r by ‖θ_o‖ of the same scope. Of an adapter the ball holds for ΔW = c·BA, and only B
    shrinks. Wang et al. 2025 (arXiv 2406.09179); r 1e-3 is the published configuration's.
    """

    reads_bar = False

    radius: float = 1e-3
    norm: Literal["l2", "linf"] = "l2"
    scope: Literal["global", "tensor"] = "global"
    relative: bool = True

    def attach(self, scene: Scene) -> TrainingControl:
        if not 0 <= self.radius < float("inf"):
            raise ConfigError(Problem("control.ball.radius", f"{self.radius} must be 0 or more, and finite"))
        return _BallHooks(self)


class _BallHooks(TrainingControl):
    whole_weights = True

    def __init__(self, settings: Ball):
        self.settings = settings
        self._original: dict[str, Tensor] = {}
        self._radii: dict[str, float] = {}

    def prepare(self, task: Any) -> None:
        model = task.subject.model
        if task.subject.adapter:
            if self.settings.norm == "linf":
                fix = "Use norm: l2, or adapter: full"
                raise ConfigError(Problem("control.ball.norm", "an adapter has no linf ball", fix))
            bases = {name: m.get_base_layer().weight for name, m in lora_modules(model)}
        else:
            bases = trainable(model)
            self._original = {name: p.detach().clone() for name, p in bases.items()}
        sizes = {name: self._size(w.detach()) for name, w in bases.items()}
        scale = sizes if self.settings.scope == "tensor" else dict.fromkeys(sizes, self._total(sizes))
        relative = self.settings.relative
        self._radii = {n: self.settings.radius * (scale[n] if relative else 1.0) for n in sizes}

    @torch.no_grad()
    def after_update(self, subject: Subject) -> None:
        bound = []
        adapters = dict(lora_modules(subject.model)) if subject.adapter else {}
        live = {} if adapters else trainable(subject.model)
        sizes = {name: _lora_norm(m) for name, m in adapters.items()}
        sizes |= {name: self._size(p - self._original[name]) for name, p in live.items()}
        total = self._total(sizes)
        for name, size in sizes.items():
            reach = size if self.settings.scope == "tensor" else total
            radius = self._radii[name]
            bound.append(reach > radius)
            if not bound[-1]:
                continue
            if name in adapters:
                for b in adapters[name].lora_B.values():
                    b.weight.mul_(radius / reach)
            else:
                self._pull(live[name], self._original[name], radius, reach)
        self.active = sum(bound) / max(1, len(bound))

    def _pull(self, parameter: Tensor, original: Tensor, radius: float, reach: float) -> None:
        change = parameter - original
        change = change.clamp(-radius, radius) if self.settings.norm == "linf" else change * (radius / reach)
        parameter.copy_(original + change)

    def _size(self, tensor: Tensor) -> float:
        return float(tensor.float().norm() if self.settings.norm == "l2" else tensor.float().abs().max())

    def _total(self, sizes: dict[str, float]) -> float:
        if self.settings.norm == "linf":
            return max(sizes.values(), default=0.0)
        return sum(size**2 for size in sizes.values()) ** 0.5


@torch.no_grad()
def _lora_norm(module: Any) -> float:
    """‖c·BA‖_F = c·sqrt(tr((BᵀB)(AAᵀ))), without the product; adapters on one matrix add up as one."""
    total = 0.0
    for name, a in module.lora_A.items():
        left, right = module.lora_B[name].weight.float(), a.weight.float()
        square = ((left.T @ left) * (right @ right.T)).sum().clamp(min=0)
        total += float(module.scaling[name] ** 2 * square)
    return total**0.5
