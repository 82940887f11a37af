"""Contrastive decoding with two small models, or with a model that was taught the forget set once more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.data.request import Request
from expunge.methods.base import METHODS
from expunge.methods.inference.decoder import Contrastive, Count, Share
from expunge.subjects.subject import Subject
from expunge.subjects.wrappers.contrast import ContrastRule
from expunge.training.assistants import shallow, taught, trained
from expunge.training.workspace import Workspace


@METHODS.register(
    "offset",
    family="inference",
    erases="output",
    targets=["records", "entity", "topic"],
    access="logits",
    needs=["retain", "two assistants"],
    cost="3F per token",
    scale="single",
    source="Huang et al. 2024, arXiv 2404.11045",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class Offset(Contrastive):
    """Add to the logits what unlearning changed in a small model (logit offset).

    z' = z_base + w·(z_unlearned − z_small). `minus`: a small model that knows forget and retain; `plus`: the
    same, unlearned `by` a method of its own. Without folders they are cut from the model (its first blocks)
    and taught here. w = 1 and no filter as in the paper (δ-unlearning), which unlearns by ascent variants;
    graddiff and 8 blocks are our choice.
    """

    trains: ClassVar[bool] = True
    weight: float = 1.0
    ratio: Share = 0.0
    by: str = "graddiff"
    layers: Count = 8

    def complete(
        self, parts: dict[str, Subject], subject: Subject, request: Request, work: Workspace
    ) -> None:
        if "minus" not in parts:
            known = [*request.forget, *request.retain]
            parts["minus"] = taught(shallow(subject, self.layers), known, work, "minus")
        if "plus" not in parts:
            parts["plus"] = trained(METHODS.make(self.by), parts["minus"], request, work, "plus")


@METHODS.register(
    "ucd",
    family="inference",
    erases="output",
    targets=["records", "entity", "topic"],
    access="logits",
    needs=["retain", "two assistants"],
    cost="3F per token",
    scale="single",
    source="Suriyakumar et al. 2025, arXiv 2506.12097",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class UCD(Contrastive):
    """Subtract from the logits what sets a small model of forget apart from one of retain.

    z' = z_base − α·(z_forget − z_retain). `plus` learned forget, `minus` retain; without folders, copies of
    the first blocks are taught here. w = −α with α = 1, r = 0.1 and 8 blocks are our choice.
    """

    trains: ClassVar[bool] = True
    weight: float = -1.0
    layers: Count = 8

    def complete(
        self, parts: dict[str, Subject], subject: Subject, request: Request, work: Workspace
    ) -> None:
        for name, records in (("plus", request.forget), ("minus", request.retain)):
            if name not in parts:
                parts[name] = taught(shallow(subject, self.layers), records, work, name)


@METHODS.register(
    "whp_decode",
    family="inference",
    erases="output",
    targets=["records", "entity", "topic", "document"],
    access="logits",
    needs=["a reinforced model"],
    cost="2F per token",
    scale="single",
    source="Eldan and Russinovich 2023, arXiv 2310.02238",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class WHPDecode(Contrastive):
    """Lower the logits that one more lesson on forget would raise (Who's Harry Potter, at decoding).

    z' = z_base − α·[z_reinforced − z_base]_+. The reinforced model (`plus`) is the model taught the forget
    set once more; a token that this does not raise keeps its logit exactly. w = −α with α = 1 as in
    reimplementations, no filter. Raw logits of both: unlike the other forms it depends on their zero.
    """

    trains: ClassVar[bool] = True
    weight: float = -1.0
    ratio: Share = 0.0

    def rule(self, vocab_size: int) -> ContrastRule:
        return replace(super().rule(vocab_size), rectified=True)

    def complete(
        self, parts: dict[str, Subject], subject: Subject, request: Request, work: Workspace
    ) -> None:
        if "plus" not in parts:
            parts["plus"] = taught(subject, request.forget, work, "plus")
