"""A disruption budget: stop when the retain loss has risen too far, and take the last step back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.data.batching import collate, token_batches
from expunge.data.records import Record
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import trainable
from expunge.training.hooks import TrainingControl
from expunge.training.views import sum_rows

__all__ = ["RetainBudget", "mean_nll"]


def mean_nll(subject: Subject, records: Sequence[Record], batch_tokens: int = 4096) -> float:
    """Mean over rows of the mean NLL of their answers, nats; NaN without a row."""
    rows = [w for record in records for w in subject.encoder.windows(record) if w.num_targets]
    total = 0.0
    with subject.evaluating() as model:
        for indices in token_batches([len(r.ids) for r in rows], batch_tokens):
            batch = collate([rows[i] for i in indices], subject.encoder.pad_id).to(subject.device)
            logits = forward(model, batch).logits
            assert logits is not None
            nll = logits.float().logsumexp(-1) - logits.float().gather(1, batch.targets[:, None])[:, 0]
            total += float((sum_rows(nll, batch.row, len(batch)) / batch.num_tokens).sum())
    return total / len(rows) if rows else float("nan")


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
