"""The dual multiplier: λ rises while the retain loss is above its limit, and falls below it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from expunge.errors import ConfigError, Problem
from expunge.training.hooks import TrainingControl
from expunge.training.retain import retain_values

__all__ = ["DualMultiplier"]

PATIENCE = 10
"""Steps in a row at the maximum after which the constraint is reported as infeasible."""


class DualMultiplier(TrainingControl):
    """λ ← min(λ_max, [λ + η (R̄ − ε)]_+), once per optimizer step; minimizes F subject to R ≤ ε.

    R̄ is the mean retain loss over all rows of the step. ε is `limit`, or (1 + slack)·R(θ_o) over the whole
    retain set. λ starts at the method's retain weight and stays there for `warmup` (share of the steps). The
    constant −λε of the Lagrangian has no gradient and is left out of the loss. Entesari et al. 2025 (arXiv
    2506.05314).
    """

    def __init__(
        self,
        *,
        eta: float = 1.0,
        limit: float | None = None,
        slack: float = 0.1,
        warmup: float = 0.0,
        maximum: float = math.inf,
    ):
        self.eta, self.limit, self.slack = eta, limit, slack
        self.warmup, self.maximum = warmup, maximum
        self.value: float | None = None  # λ; None before the first step
        self.steps = 0
        self._at_maximum = 0  # steps in a row
        self._warm_steps = 0

    def prepare(self, task: Any) -> None:
        self._warm_steps = round(self.warmup * task.num_steps)
        if self.limit is None and task.with_retain:
            if not task.retain_loss.reads:
                what = f"{task.method.retain} is a loss on weights, it gives no limit by itself"
                raise ConfigError(Problem("method.retain", what, "Use ce, or give the limit"))
            self.limit = (1 + self.slack) * float(retain_values(task).mean())

    def weights(self, forget: float, retain: float) -> tuple[float, float]:
        if self.value is None:
            self.value = retain
        return forget, self.value

    def observe(self, terms: dict[str, float]) -> None:
        if "retain" not in terms:
            return
        assert self.value is not None
        assert self.limit is not None
        self.steps += 1
        if self.steps > self._warm_steps:
            self.value = min(max(0.0, self.value + self.eta * (terms["retain"] - self.limit)), self.maximum)
            self._at_maximum = self._at_maximum + 1 if self.value == self.maximum else 0

    def finish(self, subject: Any) -> str | None:
        if not self.steps:
            return None
        if self._at_maximum >= PATIENCE:
            where = f"at its maximum {self.maximum:g} for {self._at_maximum} steps"
            return f"dual λ: {where}, a retain loss of {self.limit:.4g} is infeasible"
        return f"dual λ: ended at {self.value:.4g}, the limit on the retain loss was {self.limit:.4g}"

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"value": self.value, "steps": self.steps, "at_maximum": self._at_maximum}, {}

    def load_state(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.value, self.steps, self._at_maximum = plain["value"], plain["steps"], plain["at_maximum"]
