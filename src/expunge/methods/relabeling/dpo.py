"""Prefer another answer to the gold one: a refusal, or a plausible alternate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.data.request import Request
from expunge.methods.base import METHODS, Objective, Positive
from expunge.subjects.subject import Subject
from expunge.training.alternates import each_alternate
from expunge.training.views import View
from expunge.training.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class _Preference(Objective):
    """ℓ_f = −c/β · log σ(β Δ) with Δ = (S^ref_win − S_win) − (S^ref_lose − S_lose), lose the gold answer."""

    win: ClassVar[str]
    beta: Positive = 0.1
    prefactor: Literal["2/beta", "1"] = "2/beta"

    def loss(self, forget: View) -> Tensor:
        win, lose = getattr(forget, self.win), forget
        delta = (win.reference.sum_nll - win.sum_nll) - (lose.reference.sum_nll - lose.sum_nll)
        factor = 2 / self.beta if self.prefactor == "2/beta" else 1.0
        return -factor * logsigmoid(self.beta * delta)


@METHODS.register(
    "dpo",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["reference", "retain", "refusals"],
    cost="3F+3B",
    scale="fsdp",
    source="Rafailov et al. 2023, arXiv 2305.18290; Zhang et al. 2024, arXiv 2404.05868",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class DPO(_Preference):
    """Prefer a refusal to the gold answer, measured against the model before.

    ℓ_f = −(2/β) log σ(β Δ_i), Δ = (S^ref_win − S_win) − (S^ref_lose − S_lose), win the refusal, lose the gold
    answer. The prefactor 2/β is that of unlearning (Zhang et al. 2024, arXiv 2404.05868): at θ_o the gradient
    is that of S_win − S_lose whatever β is. `prefactor: "1"` is Rafailov et al. 2023 (arXiv 2305.18290),
    which weighs β/2 of it against the retain loss.
    """

    reads: ClassVar[tuple[str, ...]] = (
        "sum_nll",
        "reference.sum_nll",
        "refusal.sum_nll",
        "refusal.reference.sum_nll",
    )
    win: ClassVar[str] = "refusal"


@METHODS.register(
    "altpo",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic"],
    access="weights",
    needs=["reference", "retain", "alternates (made from the model where a record has none)"],
    cost="3F+3B per alternate",
    scale="fsdp",
    source="Mekala et al. 2024, arXiv 2409.13474",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class AltPO(_Preference):
    """Prefer plausible alternate answers to the gold one: `dpo` with each of K alternates as the winner.

    Each forget row enters once per alternate, up to K = `alternates`; an epoch is a pass over all of them.
    Alternates are the records' own; a record without gets the model's: its answer, turned once to a rival
    token and continued greedily, most plausible first. None may hold the gold answer or be a distractor of
    the evaluation. Mekala et al. 2024 (arXiv 2409.13474) sample them from the model with a few-shot prompt,
    K = 5, then train 2 epochs at lr 5e-5, β 0.1.
    """

    reads: ClassVar[tuple[str, ...]] = (
        "sum_nll",
        "reference.sum_nll",
        "alternate.sum_nll",
        "alternate.reference.sum_nll",
    )
    win: ClassVar[str] = "alternate"
    alternates: Annotated[int, Ge(1)] = 5

    def unlearn(self, subject: Subject, request: Request, workspace: Workspace) -> Subject:
        rows, made = each_alternate(subject, request.forget, self.alternates)
        workspace.facts["alternates"] = {"rows": len(rows), "made": made}
        return workspace.train(self, subject, replace(request, splits={**request.splits, "forget": rows}))
