"""Distillation on outputs: a student learns what a frozen teacher says, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.stats import seed_from
from expunge.subjects.architecture import without_dropout
from expunge.subjects.subject import Subject
from expunge.training.budget import mean_nll
from expunge.training.hooks import TrainingControl
from expunge.training.loop import FitResult, Loop
from expunge.training.settings import TrainSettings
from expunge.training.unlearn import UnlearnTask
from expunge.training.views import View

__all__ = ["distill", "noised"]


@torch.no_grad()
def noised(subject: Subject, alpha: float, beta: float, seed: int) -> Subject:
    """(1−α)·θ + α·β·N per matrix, N Xavier-uniform; vectors go toward the values they start training with.

    α = 0 is the subject bit for bit, α = 1 holds nothing of it. Tied tensors are noised once.
    """
    student = subject.clone()
    if alpha == 0:
        return student
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(seed, "fresh") % 2**63)
        fresh = dict(AutoModelForCausalLM.from_config(subject.config).named_parameters())
    for name, parameter in student.model.named_parameters():
        generator = torch.Generator().manual_seed(seed_from(seed, "noise", name))
        if parameter.dim() > 1:
            noise = torch.empty(parameter.shape)
            nn.init.xavier_uniform_(noise, generator=generator)
            target = beta * noise
        else:
            target = fresh[name].float()
        parameter.copy_((1 - alpha) * parameter + alpha * target.to(parameter))
    return student


@dataclass(frozen=True)
class _Imitation:
    """KL(teacher‖student) at the answer positions, as a method whose forget rows are the records."""

    name: ClassVar[str] = "distill"
    reads: ClassVar[tuple[str, ...]] = ("logits", "teacher.logits")
    retain: ClassVar[str] = "none"
    retain_weight: ClassVar[float] = 0.0

    def weights(self, progress: float) -> tuple[float, float]:
        return 1.0, 0.0

    def loss(self, view: View) -> Tensor:
        own, wanted = view.logits.log_softmax(-1), view.teacher.logits.log_softmax(-1)
        return view.mean_rows((wanted.exp() * (wanted - own)).sum(-1))


class _Caught(TrainingControl):
    """Stops once the student's loss on the records is within `tolerance` of the teacher's."""

    def __init__(self, records: Sequence[Record], goal: float, every: int):
        self.records, self.goal, self.every = records, goal, every

    def after_step(self, step: int, subject: Subject) -> bool:
        return step % self.every == 0 and mean_nll(subject, self.records) <= self.goal


def distill(
    teacher: Subject,
    student: Subject,
    records: Sequence[Record],
    settings: TrainSettings,
    *,
    tolerance: float,
    folder: Path | None = None,
    limit: int = 128,
) -> FitResult:
    """Train the student in place until its mean NLL on the first `limit` records is within `tolerance` of
    the teacher's, or the settings' steps are over; the teacher gets no gradient."""
    without_dropout(student.model)
    watched = records[:limit]
    goal = (1 + tolerance) * mean_nll(teacher, watched)
    task = UnlearnTask(_Imitation(), student, Request({"forget": tuple(records)}), settings, teacher=teacher)
    loop = Loop(
        student, task, settings, folder=folder, name="distilling",
        controls=[_Caught(watched, goal, task.steps_per_epoch)],
    )  # fmt: skip
    return loop.run()
