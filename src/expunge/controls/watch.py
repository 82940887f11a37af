"""The detector of excessive unlearning at work: it ends a training that is wrecking the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.controls.bar import Probe
from expunge.controls.base import CONTROLS, Control, Scene
from expunge.errors import ConfigError, Problem
from expunge.metrics import make_metric
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable
from expunge.training.hooks import TrainingControl

__all__ = ["Watch"]


@CONTROLS.register(
    "watch",
    when="during",
    bounds="perplexity on calibration, roughly",
    guarantee="a training that stays excessive is ended, and its last sound weights are returned",
    source="",
)
@dataclass(frozen=True)
class Watch(Control):
    """End a training that leaves the model worse than a guess on what must stay.

    Excessive: perplexity on calibration above the vocabulary size, where every token would be guessed with
    equal odds; with `ratio`, above that many times the original's. Measured on the first `records` records
    every `every` steps (0: twenty times in all). Beyond `patience` excessive measurements in a row the
    training ends, and the weights of the last sound one come back. In force in every training of a recipe,
    unless it says `watch: false`; no bar is promised, a later `uwc` holds it. A tighter limit is no better: a
    retain term mends a dip, and mixing does well with an end point beyond the bar.
    """

    reads_bar = False

    ratio: float | None = None
    every: int = 0
    patience: int = 3
    records: int = 64

    def attach(self, scene: Scene) -> TrainingControl:
        limits: dict[str, tuple[float, int]] = {"every": (self.every, 0), "patience": (self.patience, 0)}
        limits |= {"records": (self.records, 1)} | ({} if self.ratio is None else {"ratio": (self.ratio, 1)})
        problems = [
            Problem(f"control.watch.{name}", f"{value} is below {least}")
            for name, (value, least) in limits.items()
            if not value >= least
        ]
        if problems:
            raise ConfigError(problems)
        return _WatchHooks(self, scene)


class _WatchHooks(TrainingControl):
    def __init__(self, settings: Watch, scene: Scene):
        self.settings, self.scene = settings, scene
        self.every, self.strikes, self.sound_step = settings.every, 0, 0
        self.original = self.last = self.limit = math.nan
        self.sound: dict[str, Tensor] = {}
        self.ended = False

    def prepare(self, task: Any) -> None:
        self.every = self.every or max(1, task.num_steps // 20)
        records = self.scene.calibration[: self.settings.records]
        self._probe = Probe(task.subject, records, make_metric("perplexity"))
        self.original = self._measure(task.subject)
        guess = task.subject.vocab_size
        self.limit = guess if self.settings.ratio is None else self.settings.ratio * self.original
        self._keep(task.subject, 0)

    def after_step(self, step: int, subject: Subject) -> bool:
        if step % self.every or math.isnan(self.original):
            return False
        self.last = self._measure(subject)
        if self.last <= self.limit:
            self._keep(subject, step)
            self.strikes = 0
            return False
        self.strikes += 1
        self.ended = self.strikes > self.settings.patience
        return self.ended

    def finish(self, subject: Subject) -> str | None:
        if not self.ended:
            return None
        parameters = trainable(subject.model)
        with torch.no_grad():
            for name, tensor in self.sound.items():
                parameters[name].copy_(tensor)
        times = f"{self.last / self.original:.3g} times the original's"
        return (
            f"watch: excessive unlearning, perplexity on calibration rose to {times}; training was ended "
            f"and the weights of step {self.sound_step} came back"
        )

    def _measure(self, subject: Subject) -> float:
        with torch.random.fork_rng(devices=[]):
            value = self._probe(subject).value
        return math.nan if value is None else value

    def _keep(self, subject: Subject, step: int) -> None:
        self.sound_step = step
        self.sound = {name: p.detach().clone() for name, p in trainable(subject.model).items()}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"strikes": self.strikes, "sound_step": self.sound_step}, dict(self.sound)

    def load_state(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.strikes, self.sound_step, self.sound = plain["strikes"], plain["sound_step"], tensors
