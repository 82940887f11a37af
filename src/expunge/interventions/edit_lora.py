"""Editing by a low-rank adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from expunge.data.request import Request
from expunge.interventions.base import INTERVENTIONS, Count
from expunge.interventions.edit_finetune import EditFinetune, write
from expunge.subjects.adapters import attach_lora, merge
from expunge.subjects.subject import Subject


@INTERVENTIONS.register("edit_lora", family="edit", needs=[], source="Hu et al. 2021, arXiv 2106.09685")
@dataclass(frozen=True, kw_only=True)
class EditLora(EditFinetune):
    """Train a LoRA on the new answers and fold it into the weights.

    As edit_finetune, with W + (α/r)·B·A in the place of W in every linear map of the blocks, α = 2r.
    """

    rate: ClassVar[float] = 1.0

    lr: Annotated[float, Gt(0)] = 1e-4
    rank: Count = 8

    def change(self, work: Subject, request: Request, seed: int) -> Subject:
        adapted = attach_lora(work, rank=self.rank, seed=seed)
        write(self, adapted, request, seed)
        return merge(adapted)
