"""The retain weight as a multiplier: it rises while the retain loss is too high."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.training.dual import DualMultiplier
from expunge.training.hooks import TrainingControl

__all__ = ["DualLambda"]


@CONTROLS.register(
    "dual_lambda",
    when="during",
    bounds="retain loss on average",
    guarantee="asymptotic only",
    source="Entesari et al. 2025, arXiv 2506.05314",
)
@dataclass(frozen=True)
class DualLambda(Control):
    """min F subject to R ≤ ε: λ ← max(0, λ + η·(R̄ − ε)) once per optimizer step.

    ε is `limit`, by default (1 + κ)·R(θ_o) on the retain set. λ starts at the method's retain weight and
    stays there for `warmup`, a share of the steps. Entesari et al. 2025 (arXiv 2506.05314); κ 0.1 is ours.
    """

    reads_bar = False

    eta: float = 1.0
    limit: float | None = None
    kappa: float = 0.1
    warmup: float = 0.0
    maximum: float = math.inf

    def attach(self, scene: Scene) -> TrainingControl:
        bad = [n for n in ("eta", "maximum") if not getattr(self, n) > 0]
        bad += [n for n in ("kappa", "warmup") if not getattr(self, n) >= 0]
        if bad:
            raise ConfigError(
                [Problem(f"control.dual_lambda.{n}", f"{getattr(self, n)} is too low") for n in bad]
            )
        return _DualHooks(
            eta=self.eta, limit=self.limit, slack=self.kappa, warmup=self.warmup, maximum=self.maximum
        )


class _DualHooks(DualMultiplier):
    def check(self, method: Any, accumulate: int) -> None:
        if method.retain == "none" or method.retain_weight == 0:
            what = f"{method.name} has no retain term, so there is nothing to hold below a limit"
            raise ConfigError(Problem("control.dual_lambda", what, "Set method.retain: ce"))
