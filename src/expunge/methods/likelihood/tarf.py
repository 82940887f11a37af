"""Annealed ascent with a gate on retain rows that move along with the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, Objective
from expunge.training.hooks import TrainingControl
from expunge.training.retain import retain_values
from expunge.training.views import View

Share = Annotated[float, Ge(0), Lt(1)]


@METHODS.register(
    "tarf",
    family="likelihood",
    erases="influence",
    targets=["records", "entity", "topic", "capability"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    scale="fsdp",
    source="Zhu et al. 2024, arXiv 2406.08288",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class TARF(Objective):
    """Target-aware forgetting: annealed ascent, and retain rows that move with the forget set left out.

    For a forget set that is part of what must go: k(t)·ascent(forget) + mean over retain rows of τ(x)·ℓ(x),
    k(t) = max(k·(1 − t/T − t₀/T), 0) with k the forget weight. *Identify* (until t₁): τ = 0. At t₁ the retain
    rows whose loss moved most from its start, a share `hidden` of them, count as hidden forget rows and keep
    τ = 0; all others get 1. *Separate* (until T − t₀), then *retrain*: k = 0. `identify` is t₁/T, `retrain`
    t₀/T.

    Zhu et al. 2024 (arXiv 2406.08288), for image classifiers; the transfer to language models and all
    defaults are ours. The paper's threshold β is given by rank here, from the known share of the target.
    """

    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)
    identify: Share = 0.2
    retrain: Share = 0.3
    hidden: Share = 0.1

    def loss(self, forget: View) -> Tensor:
        return -forget.mean_nll

    def weights(self, progress: float) -> tuple[float, float]:
        return self.forget_weight * max(1 - progress - self.retrain, 0.0), self.retain_weight

    def hooks(self, request: Request) -> Sequence[TrainingControl]:
        return [_Gate(self.identify, self.hidden)]


class _Gate(TrainingControl):
    """τ per retain row; `moved` is |ℓ(θ_t₁) − ℓ(θ_o)|, the score by which hidden forget rows are found."""

    def __init__(self, identify: float, hidden: float):
        self.identify, self.hidden = identify, hidden
        self.moved: Tensor | None = None  # [N], None before t₁

    def prepare(self, task: Any) -> None:
        self._task = task
        self._at = round(self.identify * task.num_steps)
        if task.with_retain:
            self._start = retain_values(task)

    def begin(self, subject: Any) -> None:
        if self._at == 0 and self.moved is None:
            self._look()

    def after_step(self, step: int, subject: Any) -> bool:
        if step == self._at:
            self._look()
        return False

    def _look(self) -> None:
        if self._task.with_retain:
            self.moved = (retain_values(self._task) - self._start).abs()

    @property
    def gate(self) -> Tensor | None:
        """τ, [N]"""
        if self.moved is None:
            return None
        gate = torch.ones_like(self.moved)
        gate[self.moved.argsort(descending=True, stable=True)[: round(self.hidden * len(gate))]] = 0
        return gate

    def retain_rows(self, rows: Tensor, view: View) -> Tensor:
        gate = self.gate
        return 0 * rows if gate is None else gate[list(view.index)].to(rows.device) * rows

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {}, {} if self.moved is None else {"moved": self.moved}

    def load_state(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.moved = tensors.get("moved")
