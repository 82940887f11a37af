"""Task arithmetic over several fine-tunes, where their signs agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, OneShot, Positive, Weight
from expunge.subjects.subject import Subject
from expunge.training.task_vectors import (
    Vector,
    add_vectors,
    difference,
    fine_tuned,
    ignore_controls,
    note_moved,
)
from expunge.training.workspace import Workspace


@METHODS.register(
    "negmerge",
    family="weight_space",
    erases="influence",
    targets=["records", "entity", "document", "topic", "capability"],
    access="weights",
    needs=[],
    cost="K(1F+1B) on forget",
    limits="coarse: utility falls fast with its strength",
    scale="single",
    source="Kim, Han and Choe 2024, arXiv 2410.05583",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class NegMerge(OneShot):
    """Subtract what several fine-tunes on forget add to the weights, where all agree in sign.

    θ_u = θ_o − α·mean_k τ_k·[signs agree]. Run k fine-tunes on forget with seed + k and `lr_factors[k]` times
    the learning rate, so that what depends on hyper-parameters disagrees and drops out. Kim, Han and Choe
    2024 (arXiv 2410.05583) merge the 8 to 30 runs of a search; three are ours, for cost. α as in
    `task_vector`.
    """

    trains: ClassVar[bool] = True
    alpha: Weight = 5.0
    lr_factors: Annotated[tuple[Positive, ...], MinLen(1)] = (1.0, 0.5, 2.0)

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        merging = Consensus()
        for k, factor in enumerate(self.lr_factors):
            plain = workspace.settings
            settings = plain.model_copy(update={"seed": plain.seed + k, "lr": plain.lr * factor})
            name = f"{self.name} {k + 1} of {len(self.lr_factors)}"
            tuned = fine_tuned(
                subject, request.forget, workspace, name=name, settings=settings, part=f"run{k}"
            )
            merging.add(difference(tuned.model, subject.model))
        result = subject.clone()
        add_vectors(result.model, (-self.alpha, merging.vector()))
        note_moved(workspace, result.model, subject.model)
        return result


class Consensus:
    """Sums of values and of signs: K vectors merge in the memory of two."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: Vector = {}
        self.signs: dict[str, Tensor] = {}

    def add(self, vector: Vector) -> None:
        self.count += 1
        for name, values in vector.items():
            sign = values.sign().to(torch.int16)
            first = name not in self.totals
            self.totals[name] = values if first else self.totals[name] + values
            self.signs[name] = sign if first else self.signs[name] + sign

    def vector(self) -> Vector:
        """The mean where all signs agree, 0 elsewhere."""
        return {
            name: torch.where(self.signs[name].abs() == self.count, total / self.count, 0.0)
            for name, total in self.totals.items()
        }
