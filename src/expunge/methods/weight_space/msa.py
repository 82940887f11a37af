"""Model state arithmetic: task vectors measured where the forget set was still unseen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.data.request import Request
from expunge.errors import ConfigError, ModelError, Problem
from expunge.methods.base import METHODS, OneShot, Weight
from expunge.progress import say
from expunge.subjects.subject import Subject, load_subject
from expunge.training.task_vectors import (
    add_vectors,
    check_same,
    difference,
    fine_tuned,
    ignore_controls,
    note_moved,
)
from expunge.training.workspace import Workspace


@METHODS.register(
    "msa",
    family="weight_space",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain", "a model from before exposure"],
    cost="1F+1B on forget and on retain",
    scale="single",
    source="Rezaei et al. 2025, arXiv 2506.20941",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class MSA(OneShot):
    """Task arithmetic with vectors taken on a checkpoint from before exposure.

    θ_u = θ_D − α (θ_0f − θ_0) + β (θ_0r − θ_0). θ_0f and θ_0r are fine-tunes of `base` (a folder or hub id)
    on forget and on retain; without a retain set, or with β = 0, that term is left out. Rezaei et al. 2025
    (arXiv 2506.20941): α 1 to 2, β 1, lr 1e-5; their script adds in bf16, here every sum is fp32.
    """

    trains: ClassVar[bool] = True
    base: str | None = None
    alpha: Weight = 1.0
    beta: Weight = 1.0

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        ignore_controls(self.name, workspace)
        start = self._before(subject)
        beta = self.beta if request.retain else 0.0
        if beta != self.beta:
            say("msa: no retain set, so its retain vector is left out")
        terms = []
        for scale, split in ((-self.alpha, "forget"), (beta, "retain")):
            if scale:
                tuned = fine_tuned(start, request[split], workspace, name=f"{self.name}, {split}", part=split)
                terms.append((scale, difference(tuned.model, start.model)))
        result = subject.clone()
        add_vectors(result.model, *terms)
        note_moved(workspace, result.model, subject.model)
        return result

    def _before(self, subject: Subject) -> Subject:
        """θ_0, of the same architecture and tokenizer as the subject."""
        if not self.base:
            fix = "Give its folder or hub id; without one, task_vector starts from the original"
            raise ConfigError(Problem("method.base", "msa needs a checkpoint from before exposure", fix))
        length = subject.encoder.max_length
        start = load_subject(self.base, device=str(subject.device), max_length=length)
        if start.encoder.fingerprint() != subject.encoder.fingerprint():
            what, fix = "its tokenizer is not that of the model", "Bring an earlier checkpoint of this model"
            raise ModelError(Problem(f"method.base: {self.base}", what, fix))
        check_same(subject.model, start.model)
        if start.fingerprint() == subject.fingerprint():
            fix = "Give an earlier checkpoint; without one, use task_vector"
            raise ConfigError(Problem("method.base", "the original has seen the forget set", fix))
        return start
