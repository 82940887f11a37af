"""Stop ascent when the model knows the forget set no better than text it never saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expunge.controls.bar import Probe
from expunge.controls.base import CONTROLS, Control, Scene
from expunge.data.records import Record
from expunge.errors import ConfigError, DataError, Problem
from expunge.metrics import make_metric
from expunge.subjects.subject import Subject
from expunge.training.hooks import TrainingControl

__all__ = ["StopAtUnseen"]

MEMORY = ("extraction_strength", "exact_memorization")


@CONTROLS.register(
    "stop_at_unseen",
    when="during",
    bounds="memorization of the forget set from below",
    guarantee="no step after both measures on forget reach those of holdout",
    source="Jang et al. 2022, arXiv 2210.01504",
)
@dataclass(frozen=True)
class StopAtUnseen(Control):
    """Stop once extraction strength and exact memorization of forget are no higher than θ_o's on holdout.

    Looked at every `every` steps, 0: once an epoch. Says when to end, not whether utility survived. Jang et
    al. 2022 (arXiv 2210.01504): their rule for `ga` takes the extraction likelihood of n-grams, which decodes
    from every prefix; extraction strength asks the same of one forward pass.
    """

    reads_bar = False

    every: int = 0

    def attach(self, scene: Scene) -> TrainingControl:
        if self.every < 0:
            raise ConfigError(Problem("control.stop_at_unseen.every", f"{self.every} is below 0"))
        return _StopHooks(self.every)


class _StopHooks(TrainingControl):
    def __init__(self, every: int):
        self.every = every
        self.reached = False

    def prepare(self, task: Any) -> None:
        holdout: Sequence[Record] = task.request["holdout"]
        if not holdout:
            what = "measures the level of unseen text on holdout, and there is none"
            raise DataError(Problem("control.stop_at_unseen", what, "Bring `holdout`"))
        self.every = self.every or task.steps_per_epoch
        metrics = [make_metric(name) for name in MEMORY]
        unseen = [Probe(task.subject, holdout, metric) for metric in metrics]
        self._levels = [_value(probe, task.subject) for probe in unseen]
        if math.inf in self._levels:
            what = "memorization of holdout is not computable"
            raise DataError(Problem("control.stop_at_unseen", what, "Bring holdout records with answers"))
        self._probes = [Probe(task.subject, task.request.forget, metric) for metric in metrics]

    def after_step(self, step: int, subject: Subject) -> bool:
        if step % self.every == 0:
            values = [_value(probe, subject) for probe in self._probes]
            self.reached = all(v <= level for v, level in zip(values, self._levels, strict=True))
        return self.reached

    def finish(self, subject: Subject) -> str | None:
        what = "reached" if self.reached else "was not reached"
        return f"stop_at_unseen: the level of unseen text {what}"


def _value(probe: Probe, subject: Subject) -> float:
    """The score; inf where there is none: then no level is reached."""
    with torch.random.fork_rng(devices=[]):
        value = probe(subject).value
    return math.inf if value is None else value
