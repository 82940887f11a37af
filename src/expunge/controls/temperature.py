"""Another shape of the forget gradient: likelihoods from logits / T."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from expunge.controls.base import CONTROLS, Control, Scene
from expunge.controls.binding import likelihood
from expunge.errors import ConfigError, Problem
from expunge.registry import Search
from expunge.training.hooks import TrainingControl
from expunge.training.views import View

__all__ = ["Temperature"]


@CONTROLS.register(
    "temperature",
    when="during",
    bounds="shape of the forget gradient",
    guarantee="none, a heuristic",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class Temperature(Control):
    """Forget NLL from logits / T; retain loss and every measurement stay at T = 1.

    The gradient on the logits of ascent is −(softmax(z/T) − onehot)/T: T > 1 pushes more where the model is
    sure. Cached likelihoods of a reference stay at T = 1. Wang et al. 2025 (arXiv 2406.09179); T about 2.
    """

    reads_bar = False

    temperature: Annotated[float, Search(1.0, 4.0)] = 2.0

    def attach(self, scene: Scene) -> TrainingControl:
        if not 0 < self.temperature < float("inf"):
            what = f"{self.temperature} must be above 0 and finite"
            raise ConfigError(Problem("control.temperature.temperature", what))
        return _TemperatureHooks(self.temperature)


class _TemperatureHooks(TrainingControl):
    def __init__(self, temperature: float):
        self.temperature = temperature
        self.active = 0.0 if temperature == 1 else 1.0

    def check(self, method: Any, accumulate: int) -> None:
        likelihood("temperature", method)

    def forget_view(self, view: View) -> View:
        return view.tempered(self.temperature)
