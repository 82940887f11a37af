"""A fixed ratio of forget to retain force, the forget force hinged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.controls.hinge_cap import HingeCap, HingeHooks
from expunge.errors import ConfigError, Problem
from expunge.training.hooks import TrainingControl

__all__ = ["CappedMix"]


@CONTROLS.register(
    "capped_mix",
    when="during",
    bounds="ratio of forget to retain force",
    guarantee="as hinge_cap, with a fixed ratio",
    source="Wang et al. 2024, arXiv 2406.09179v1",
)
@dataclass(frozen=True)
class CappedMix(Control):
    """Minimize (1−ρ)·R + ρ·F, F the hinge on each forget sequence; with no sequence below δ, skip the step.

    As λ = (1−ρ)/ρ, scaled by ρ: 0.1 is λ = 9. ρ = 1 is `hinge_cap` without a retain forward. For ascent
    methods. Wang et al. 2024 (arXiv 2406.09179v1); ρ 0.1 is the published code's.
    """

    reads_bar = False

    rho: float = 0.1
    delta: float = 6.0
    normalize: Literal["sum", "token"] = "token"
    divide_by: Literal["active", "batch"] = "active"

    def attach(self, scene: Scene) -> TrainingControl:
        if not 0 < self.rho <= 1:
            fix = "0 would be retain training alone, 1 is hinge_cap"
            raise ConfigError(Problem("control.capped_mix.rho", f"{self.rho} is outside (0, 1]", fix))
        hinge = HingeCap(self.delta, self.normalize, self.divide_by, "skip_step")
        hinge.attach(scene)
        return _MixHooks(hinge, self.rho)


class _MixHooks(HingeHooks):
    name = "capped_mix"

    def __init__(self, settings: HingeCap, rho: float):
        super().__init__(settings)
        self.rho = rho
        self.drops_retain = rho == 1

    def weights(self, forget: float, retain: float) -> tuple[float, float]:
        return self.rho, 1 - self.rho
