"""Generic targets from a model that knows the forget set even better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import one_hot

from expunge.data.request import Request
from expunge.methods.base import METHODS, Objective, Positive, Weight
from expunge.subjects.subject import Subject
from expunge.training.teachers import reinforced
from expunge.training.views import View
from expunge.training.workspace import Workspace


@METHODS.register(
    "whp",
    family="relabeling",
    erases="influence",
    targets=["records", "entity", "document", "topic"],
    access="weights",
    needs=["reference"],
    cost="1F+1B, and the reinforced model",
    scale="ddp",
    source="Eldan and Russinovich 2023, arXiv 2310.02238",
    verified=["forgetting"],
)
@dataclass(frozen=True, kw_only=True)
class WHP(Objective):
    """Learn generic answers, found with a model that knows forget even better (Who's Harry Potter).

    ℓ_f = mean_t CE(v, p), v = z_ref − α [z_reinf − z_ref]_+ on logits: what reinforcement raises is what is
    special about the forget set. The reinforced model is a copy of the original trained `reinforce_epochs`
    more on the forget set at `reinforce_lr` (ours). `target`: softmax(v), or its argmax as a label. α 1 as in
    reimplementations; Eldan and Russinovich 2023 (arXiv 2310.02238) also replace anchored terms by a
    dictionary, left out here.
    """

    reads: ClassVar[tuple[str, ...]] = ("logits", "reference.logits", "teacher.logits")
    alpha: Weight = 1.0
    target: Literal["soft", "argmax"] = "soft"
    reinforce_epochs: Positive = 3.0
    reinforce_lr: Positive = 1e-5
    retain: str = "none"

    def loss(self, forget: View) -> Tensor:
        z_ref = forget.reference.logits
        v = z_ref - self.alpha * (forget.teacher.logits - z_ref).clamp(min=0)
        target = v.softmax(-1) if self.target == "soft" else one_hot(v.argmax(-1), v.shape[-1])
        return -forget.mean_rows((target * forget.logits.log_softmax(-1)).sum(-1))

    def teacher(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        epochs, lr = self.reinforce_epochs, self.reinforce_lr
        return reinforced(subject, request.forget, workspace, "reinforced", epochs=epochs, lr=lr)
