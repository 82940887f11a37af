"""Task arithmetic: negate what fine-tuning on the forget set adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.data.request import Request
from expunge.methods.base import METHODS, OneShot, Weight
from expunge.subjects.subject import Subject
from expunge.training.task_vectors import add_vectors, difference, fine_tuned, ignore_controls, note_moved
from expunge.training.workspace import Workspace


@METHODS.register(
    "task_vector",
    family="weight_space",
    erases="influence",
    targets=["records", "entity", "document", "topic", "capability"],
    access="weights",
    needs=[],
    cost="1F+1B on forget",
    limits="coarse: utility falls fast with its strength",
    scale="ddp",
    source="Ilharco et al. 2022, arXiv 2212.04089",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class TaskVector(OneShot):
    """Subtract from the weights what fine-tuning on the forget set adds.

    θ_u = θ_o − α (θ_ft − θ_o). Coarse: utility falls fast with α, so let a control after training choose it:
    mixing by s is α·s exactly. Ilharco et al. 2022 (arXiv 2212.04089) tune α on held-out data; α = 5 after 10
    epochs at lr 1e-5 is the MUSE baseline (Shi et al. 2024, arXiv 2407.06460). With a LoRA its product is the
    vector.
    """

    trains: ClassVar[bool] = True
    alpha: Weight = 5.0

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        tuned = fine_tuned(subject, request.forget, workspace, name=self.name)
        result = subject.clone()
        add_vectors(result.model, (-self.alpha, difference(tuned.model, subject.model)))
        note_moved(workspace, result.model, subject.model)
        return result
