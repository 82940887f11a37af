"""A disruption budget: stop when the retain loss has risen too far, and take the last step back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.data.batching import token_batches
from expunge.data.records import Record
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable
from expunge.training.gradients import answer_rows, row_losses
from expunge.training.hooks import TrainingControl

__all__ = ["RetainBudget", "mean_nll"]


def mean_nll(subject: Subject, records: Sequence[Record], batch_tokens: int = 4096) -> float:
    """Mean over rows of the mean NLL of their answers, nats. Raises DataError without a row."""
    rows = answer_rows(subject, records)
    with subject.evaluating():
        batches = token_batches([len(r.ids) for r in rows], batch_tokens)
        return sum(float(row_losses(subject, [rows[i] for i in b]).sum()) for b in batches) / len(rows)


class RetainBudget(TrainingControl):
    """Stops when mean NLL on `records` exceeds `ratio` times its first value; restores the step before."""

    def __init__(self, records: Sequence[Record], ratio: float, limit: int = 64):
        self.records, self.ratio = records[:limit], ratio
        self.start: float | None = None
        self._good: dict[str, Tensor] = {}
        self._exceeded = False

    def begin(self, subject: Subject) -> None:
        if self.start is None:
            self.start = mean_nll(subject, self.records)
        self._keep(subject)

    def after_step(self, step: int, subject: Subject) -> bool:
        assert self.start is not None
        if not self.records:
            return False
        self._exceeded = not mean_nll(subject, self.records) <= self.ratio * self.start
        if not self._exceeded:
            self._keep(subject)
        return self._exceeded

    def finish(self, subject: Subject) -> str | None:
        if not self._exceeded:
            return None
        parameters = trainable(subject.model)
        with torch.no_grad():
            for name, tensor in self._good.items():
                parameters[name].copy_(tensor)
        return f"the retain loss exceeded {self.ratio:g} times its start: the step before was restored"

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"start": self.start}, {}

    def load_state(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.start = plain["start"]

    def _keep(self, subject: Subject) -> None:
        self._good = {name: p.detach().clone() for name, p in trainable(subject.model).items()}
