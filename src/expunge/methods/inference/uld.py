"""Unlearning from logit difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.data.request import Request
from expunge.methods.base import METHODS, Objective, Weight
from expunge.methods.inference.decoder import Contrastive, Count
from expunge.subjects.subject import Subject
from expunge.training.assistants import shallow, trained
from expunge.training.views import View
from expunge.training.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Insider(Objective):
    """CE on forget + 5·KL(U‖p) on retain: an assistant that knows what must go, and nothing else."""

    name: ClassVar[str] = "uld"
    reads: ClassVar[tuple[str, ...]] = ("mean_nll",)
    retain: str = "uniform"
    retain_weight: Weight = 5.0

    def loss(self, forget: View) -> Tensor:
        return forget.mean_nll


@METHODS.register(
    "uld",
    family="inference",
    erases="output",
    targets=["records", "entity", "topic"],
    access="logits",
    needs=["retain", "an assistant"],
    cost="2F per token",
    scale="single",
    source="Ji et al. 2024, arXiv 2406.08607",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class ULD(Contrastive):
    """Subtract the logits of an assistant that knows only the forget set.

    z' = z_base + w·z_assistant. The assistant: the first 8 blocks with a LoRA, CE on forget + 5·KL(U‖p) on
    retain; where it is uniform it changes nothing. w = −1 and r = 0.1 are the official configuration (its
    TOFU script: −0.8, 0.01, lr 1e-3, 10 epochs); rank 16 is ours. The official code scores excluded tokens at
    their base logits and decodes without them, two different models; here one z' serves both.
    """

    trains: ClassVar[bool] = True
    weight: float = -1.0
    layers: Count = 8
    rank: Count = 16
    retain_weight: Weight = 5.0

    def complete(
        self, parts: dict[str, Subject], subject: Subject, request: Request, work: Workspace
    ) -> None:
        if "plus" not in parts:
            small, task = shallow(subject, self.layers), Insider(retain_weight=self.retain_weight)
            parts["plus"] = trained(task, small, request, work, "plus", rank=self.rank)
