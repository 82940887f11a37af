"""Editing by fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.interventions.base import INTERVENTIONS, Count, Edit, edited
from expunge.subjects.subject import Subject
from expunge.training.finetune import finetune
from expunge.training.settings import TrainSettings


@INTERVENTIONS.register("edit_finetune", family="edit", needs=[], source="Zhu et al. 2020, arXiv 2012.00363")
@dataclass(frozen=True, kw_only=True)
class EditFinetune(Edit):
    """Train all weights on the new answers; nothing holds what is not edited.

    min_θ mean −log p(new | prompt)/T over the edited questions, AdamW, constant learning rate.
    """

    rate: ClassVar[float] = 1.0  # a good learning rate in units of full fine-tuning's

    lr: Annotated[float, Gt(0)] = 1e-5
    epochs: Annotated[float, Gt(0)] = 10.0
    batch: Count = 8
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def change(self, work: Subject, request: Request, seed: int) -> Subject | None:
        finetune(work, new_facts(request, self, seed), settings(self, seed), name=self.name)
        return None


def new_facts(request: Request, edit: Edit, seed: int) -> list[Record]:
    """The edited questions with the new answer in the place of the old one."""
    records = edited(request, edit.target, seed, edit.name)
    return [replace(r, answer=r.refusal or "") for r in records]


def settings(edit: EditFinetune, seed: int) -> TrainSettings:
    return TrainSettings(
        lr=edit.lr, epochs=edit.epochs, batch=edit.batch, seed=seed, weight_decay=edit.weight_decay,
        schedule="constant", warmup=0.0, log_every=10_000,
    )  # fmt: skip
