"""Editing in closed form, through the unlearning methods of that kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from expunge.data.request import Request
from expunge.interventions.base import INTERVENTIONS, Edit, edited
from expunge.methods import make_method
from expunge.subjects.subject import Subject
from expunge.training.settings import TrainSettings
from expunge.training.workspace import Workspace


@INTERVENTIONS.register(
    "edit_rank_one", family="edit", needs=["retain"],
    source="Meng et al. 2022, arXiv 2202.05262 and arXiv 2210.07229",
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class EditRankOne(Edit):
    """Write the new answers into the MLPs by closed-form edits of low rank.

    `rome`: W' = W + (v* − Wk*)(C⁻¹k*)ᵀ/(k*ᵀC⁻¹k*), fact after fact into one layer; `memit`: all facts at
    once, spread over layers. `settings` are the method's own, see `expunge list methods rome`.
    """

    algorithm: Literal["rome", "memit"] = "rome"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def change(self, work: Subject, request: Request, seed: int) -> Subject:
        method = make_method(self.algorithm, **self.settings)
        records = edited(request, self.target, seed, self.name)
        asked = replace(request, splits={**request.splits, "forget": records})
        return method.unlearn(work, asked, Workspace(TrainSettings(seed=seed)))
