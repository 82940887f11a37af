"""Likelihood capping: tokens that are forgotten enough are left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.training.hooks import TrainingControl
from expunge.training.views import View

__all__ = ["Cap"]


@CONTROLS.register(
    "cap",
    when="during",
    bounds="NLL of each forget token",
    guarantee="no gradient where p ≤ p_min",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class Cap(Control):
    """Cut each forget token's NLL at δ = −log p_min: −(1/n) Σ_t min(NLL_t, δ).

    The gradient ends where p_t ≤ p_min; n counts all forget tokens, so capped ones weaken the push. A `p_min`
    below 1/V pushes tokens below chance. Wang et al. 2025 (arXiv 2406.09179).
    """

    reads_bar = False

    p_min: float = 0.01

    def attach(self, scene: Scene) -> TrainingControl:
        if not 0 < self.p_min < 1:
            raise ConfigError(Problem("control.cap.p_min", f"{self.p_min} is outside (0, 1)"))
        return _CapHooks(-math.log(self.p_min))


class _CapHooks(TrainingControl):
    def __init__(self, nats: float):
        self.nats = nats

    def forget_view(self, view: View) -> View:
        if not view.has_likelihood:
            what = "the method's loss reads no likelihood of the forget answers, there is nothing to cap"
            raise ConfigError(Problem("control.cap", what, "Remove `cap`"))
        capped = view.capped(self.nats)
        self.active = float((capped._token_logprobs.detach() <= -self.nats).float().mean())
        return capped
