"""Unlearn, noise, distill on outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.methods.base import METHODS, OneShot, Positive
from expunge.registry import Search
from expunge.subjects.subject import Subject
from expunge.training.distill import distill, noised
from expunge.training.workspace import Workspace


@METHODS.register(
    "undo",
    family="robust",
    erases="influence",
    targets=["records", "entity", "document", "topic", "capability"],
    access="weights",
    needs=["retain"],
    cost="0.3 to 0.8 of retraining, by α",
    scale="single",
    source="Lee, Foote et al. 2025, arXiv 2506.06278",
    verified=["forgetting", "utility", "robustness"],
)
@dataclass(frozen=True, kw_only=True)
class UNDO(OneShot):
    """Noise the weights of an unlearned teacher and distill it back on retain text.

    student ← (1−α)·θ_teacher + α·β·N, N Xavier-uniform per matrix; then KL(teacher‖student) at the answer
    positions of retain until the student's retain loss is within `tolerance` of the teacher's, or `epochs`
    are over. What distillation never shows the student, it does not get back. The authors pull vectors toward
    zero as well, which shrinks norm scales; here they go toward their initial values. Lee, Foote et al. 2025
    (arXiv 2506.06278): α 0.1 to 0.8, β 0.1, lr 9e-4, cosine to 7e-4. `teacher` is any method by name.
    """

    trains: ClassVar[bool] = True
    teacher: str = "wga"
    teacher_settings: dict[str, Any] | None = None
    alpha: Annotated[float, Ge(0), Le(1)] = 0.6
    beta: Positive = 0.1
    lr: Positive = 9e-4
    epochs: Positive = 40.0
    tolerance: Annotated[float, Gt(0), Search()] = 0.05

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        if not request.retain:
            raise DataError(Problem("retain", f"{self.name} distills on retain records", "Bring some"))
        part = lambda name: workspace.folder / name if workspace.folder else None  # noqa: E731
        first = replace(workspace, folder=part("teacher"), facts={})
        method = METHODS.make(self.teacher, **(self.teacher_settings or {}))
        teacher = method.unlearn(subject, request, first)
        student = noised(teacher, self.alpha, self.beta, workspace.settings.seed)
        settings = workspace.settings.model_copy(
            update={"lr": self.lr, "epochs": self.epochs, "steps": None, "schedule": "cosine"}
        )
        result = distill(
            teacher, student, request.retain, settings, tolerance=self.tolerance, folder=part("distill")
        )
        if first.result is not None:
            result.tokens += first.result.tokens
            result.notes[:0] = first.result.notes
        workspace.result = result
        workspace.facts.update({"teacher": first.facts, "distill_steps": result.steps})
        return student
