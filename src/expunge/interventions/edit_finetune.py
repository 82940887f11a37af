"""Editing by fine-tuning."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.interventions.base import INTERVENTIONS, Count, Edit, edited
from expunge.subjects.subject import Subject
from expunge.training.finetune import finetune
from expunge.training.hooks import TrainingControl
from expunge.training.settings import TrainSettings


@INTERVENTIONS.register("edit_finetune", family="edit", needs=[], source="Zhu et al. 2020, arXiv 2012.00363")
@dataclass(frozen=True, kw_only=True)
class EditFinetune(Edit):
    """Train all weights on the new answers; nothing holds what is not edited.

    min_θ mean −log p(new | prompt)/T over the edited questions, AdamW, constant learning rate, until all
    steps of an epoch had a loss below `until`.
    """

    rate: ClassVar[float] = 0.3  # a good learning rate in units of unlearning's, for `expunge compose`

    lr: Annotated[float, Gt(0)] = 1e-5
    epochs: Annotated[float, Gt(0)] = 20.0
    until: Annotated[float, Ge(0)] = 0.2
    batch: Count = 4
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def change(self, work: Subject, request: Request, seed: int) -> Subject | None:
        write(self, work, request, seed)
        return None


def write(edit: EditFinetune, work: Subject, request: Request, seed: int) -> None:
    """Train whatever of `work` is trainable on the new answers, in place."""
    records = new_facts(edited(request, edit.target, seed, edit.name))
    settings = TrainSettings(
        lr=edit.lr, epochs=edit.epochs, batch=edit.batch, seed=seed, weight_decay=edit.weight_decay,
        schedule="constant", warmup=0.0, log_every=10_000,
    )  # fmt: skip
    learned = _Learned(edit.until, -(-len(records) // edit.batch))
    finetune(work, records, settings, controls=[learned], name=edit.name)


def new_facts(records: Sequence[Record]) -> list[Record]:
    """The edited questions with the new answer in the place of the old one."""
    return [replace(r, answer=r.refusal or "") for r in records]


class _Learned(TrainingControl):
    """Ends a training once the last steps, an epoch of them, all had a loss below a limit."""

    def __init__(self, limit: float, steps: int):
        self.limit = limit
        self.losses: deque[float] = deque(maxlen=steps)

    def observe(self, terms: dict[str, float]) -> None:
        self.losses.append(terms["ce"])

    def after_step(self, step: int, subject: Subject) -> bool:
        return len(self.losses) == self.losses.maxlen and max(self.losses) < self.limit
