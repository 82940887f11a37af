"""Plain fine-tuning: cross-entropy on answers. Originals, oracles and relearning attacks are made with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from expunge import ranks
from expunge.data.batching import Batch, collate
from expunge.data.pairing import Schedule
from expunge.data.records import Record
from expunge.errors import DataError, Problem
from expunge.subjects.architecture import without_dropout
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.hooks import TrainingControl
from expunge.training.loop import FitResult, Loop, Term
from expunge.training.settings import TrainSettings
from expunge.training.views import sum_rows

__all__ = ["FinetuneTask", "finetune"]


class FinetuneTask:
    """Mean NLL of each row's answer, averaged over rows; their order depends on (seed, epoch) only."""

    def __init__(self, subject: Subject, records: Sequence[Record], settings: TrainSettings):
        self.subject, self.settings = subject, settings
        found = [(r.id, w) for r in records for w in subject.encoder.windows(r) if w.num_targets]
        self.ids, self.rows = [name for name, _ in found], [row for _, row in found]
        if not self.rows:
            raise DataError(Problem("training records", "none has an answer to train on", "Bring records"))
        self.schedule = Schedule(
            [len(r.ids) for r in self.rows], [], batch=settings.batch, seed=settings.seed
        )
        self.steps_per_epoch = self.schedule.steps_per_epoch
        self.num_steps = settings.num_steps(len(self.rows))

    def micro_batches(self, step: int) -> list[tuple[Batch, int]]:
        _, indices, _ = self.schedule.step(step)
        own = ranks.shard(indices)
        parts = np.array_split(own, min(self.settings.accumulate, len(own))) if own else []
        pad, device = self.subject.encoder.pad_id, self.subject.device
        return [(collate([self.rows[i] for i in part], pad).to(device), len(indices)) for part in parts]

    def terms(self, micro: tuple[Batch, int]) -> dict[str, Term]:
        batch, count = micro
        logits = forward(self.subject.model, batch).logits
        assert logits is not None
        logits = logits.float()
        losses = logits.logsumexp(-1) - logits.gather(1, batch.targets[:, None])[:, 0]
        return {"ce": Term(sum_rows(losses, batch.row, len(batch)) / batch.num_tokens, count)}

    def tokens(self, micro: tuple[Batch, int]) -> int:
        return micro[0].input_ids.numel()


def finetune(
    subject: Subject,
    records: Sequence[Record],
    settings: TrainSettings,
    *,
    folder: Path | None = None,
    controls: Sequence[TrainingControl] = (),
    name: str = "fine-tuning",
) -> FitResult:
    """Fine-tune the subject in place; `controls` may stop it. Raises DataError where no row has an answer."""
    without_dropout(subject.model)
    return Loop(
        subject,
        FinetuneTask(subject, records, settings),
        settings,
        folder=folder,
        controls=controls,
        name=name,
    ).run()
