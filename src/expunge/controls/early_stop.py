"""Stop when calibration falls below the bar, and return the last checkpoint that met it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.controls.bar import Bar, Probe
from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable
from expunge.training.hooks import TrainingControl

__all__ = ["EarlyStop"]


@CONTROLS.register(
    "early_stop",
    when="during",
    bounds="length of the path",
    guarantee="the returned checkpoint meets the bar on calibration",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class EarlyStop(Control):
    """Measure calibration every `every` steps; stop beyond `patience` misses; restore the last good weights.

    Step 0 is θ_o and always good, so there is always something to return. A non-finite value is a miss.
    """

    every: int = 25
    patience: int = 0

    def attach(self, scene: Scene) -> TrainingControl:
        if self.every < 1 or self.patience < 0:
            what = f"every {self.every}, patience {self.patience}"
            raise ConfigError(Problem("control.early_stop", what, "every ≥ 1 step, patience ≥ 0"))
        return _EarlyStopHooks(self, scene)


class _EarlyStopHooks(TrainingControl):
    def __init__(self, settings: EarlyStop, scene: Scene):
        self.settings, self.scene = settings, scene
        self.bar: Bar = scene.bar
        self.misses = 0
        self.good_step = 0
        self.good: dict[str, Tensor] | None = None
        self._last_step = 0
        self._probe: Probe | None = None

    def begin(self, subject: Subject) -> None:
        self._probe = Probe(subject, self.scene.calibration, self.bar.metric)
        if self.good is None:
            self._keep(subject, 0)

    def after_step(self, step: int, subject: Subject) -> bool:
        self._last_step = step
        self.calibration = None
        if step % self.settings.every:
            return False
        return self._measure(step, subject)

    def _measure(self, step: int, subject: Subject) -> bool:
        assert self._probe is not None
        with torch.random.fork_rng(devices=[]):
            self.calibration = self._probe(subject).value
        if self.bar.met_by(self.calibration):
            self._keep(subject, step)
            self.misses = 0
            return False
        self.misses += 1
        return self.misses > self.settings.patience

    def finish(self, subject: Subject) -> str | None:
        if self._last_step % self.settings.every and self.good_step != self._last_step:
            self._measure(self._last_step, subject)
        if self.good_step == self._last_step:
            return None
        assert self.good is not None
        parameters = trainable(subject.model)
        with torch.no_grad():
            for name, tensor in self.good.items():
                parameters[name].copy_(tensor)
        if self.good_step == 0:
            return "early_stop: the method could not move within the bar; the original weights were restored"
        return (
            f"early_stop: calibration fell below the bar, the weights of step {self.good_step} were restored"
        )

    def _keep(self, subject: Subject, step: int) -> None:
        self.good_step = step
        self.good = {name: p.detach().clone() for name, p in trainable(subject.model).items()}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        plain = {"misses": self.misses, "good_step": self.good_step, "last_step": self._last_step}
        return plain, dict(self.good or {})

    def load_state(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.misses, self.good_step, self.good = plain["misses"], plain["good_step"], tensors
        self._last_step = plain["last_step"]
