"""Knowledge-gap alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.subjects.adapters import merge
from expunge.subjects.architecture import linear_targets
from expunge.subjects.subject import Subject
from expunge.training.settings import TrainSettings
from expunge.training.teachers import knowledge_gap, reinforced, trained_copy
from expunge.training.views import View
from expunge.training.workspace import Workspace


@METHODS.register(
    "kl_gap",
    family="relabeling",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["retain", "reference", "holdout"],
    cost="2F+2B, and two fine-tunes",
    scale="single",
    source="Wang et al. 2023, arXiv 2305.06535",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class KLGap(Objective):
    """Knowledge-gap alignment (KGA): be as far from a model of the forget set as from one of unseen records.

    ℓ_f = |KL(θ ‖ A_f) − G|, KL the mean over a row's answer tokens, G the mean of KL(θ_o ‖ A_n) over holdout.
    A_f and A_n are copies of the original, trained on forget and on holdout for `epochs` at `lr` (ours).
    `direction: reverse` is KL(A ‖ ·), as the authors' code has it. A LoRA is trained, of `rank` where the
    run asks for none (0: the same maps in full). Wang et al. 2023 (arXiv 2305.06535), retain weight 0.1 as in
    their code; they train A_f and A_n from the start and pair each forget row with one of the unseen rows.
    """

    reads: ClassVar[tuple[str, ...]] = ("logits", "teacher.logits")
    direction: Literal["forward", "reverse"] = "forward"
    epochs: Positive = 5.0
    lr: Positive = 1e-5
    rank: Annotated[int, Ge(0)] = 16
    retain: str = "kl"
    retain_weight: Weight = 0.1

    def loss(self, forget: View, gap: Tensor) -> Tensor:
        p, q = forget.logits.log_softmax(-1), forget.teacher.logits.log_softmax(-1)
        if self.direction == "reverse":
            p, q = q, p
        return (forget.mean_rows((p.exp() * (p - q)).sum(-1)) - gap).abs()

    def check(self, subject: Subject, request: Request) -> None:
        super().check(subject, request)
        if not request["holdout"]:
            what, fix = f"{self.name} measures its gap on unseen records", "Bring a holdout set"
            raise DataError(Problem("holdout", what, fix))

    def selects(self, subject: Subject) -> set[str]:
        maps = tuple(linear_targets(subject.model))
        names = dict(subject.model.named_parameters())
        return {n for n in names if n.endswith(".weight") and n.removesuffix(".weight").endswith(maps)}

    def setup(self, subject: Subject, request: Request, seed: int) -> dict[str, Tensor]:
        original = merge(subject.clone())
        settings = TrainSettings(epochs=self.epochs, lr=self.lr, seed=seed)
        unseen, _ = trained_copy(original, request["holdout"], settings, "unseen")
        pair = (original, unseen) if self.direction == "forward" else (unseen, original)
        return {"gap": torch.tensor(knowledge_gap(*pair, request["holdout"]))}

    def teacher(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        return reinforced(subject, request.forget, workspace, "known", epochs=self.epochs, lr=self.lr)

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        return workspace.train(self, subject, request, rank=self.rank)
