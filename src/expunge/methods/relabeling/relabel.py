"""Other labels for the forget prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from expunge.methods.base import METHODS, Objective
from expunge.training.views import View

VARIANTS = {
    "random": "mismatch",
    "generic": "generic",
    "refusal": "refusal",
    "empty": "empty",
    "alternate": "alternate",
}
"""Mode → answer variant, see expunge.training.answers."""


@METHODS.register(
    "relabel",
    family="relabeling",
    erases="output",
    targets=["records", "entity", "topic", "document"],
    access="weights",
    needs=["retain"],
    cost="2F+2B",
    scale="fsdp",
    source="Golatkar et al. 2020, arXiv 1911.04933; Maini et al. 2024, arXiv 2401.06121",
    verified=["forgetting", "utility"],
)
@dataclass(frozen=True, kw_only=True)
class Relabel(Objective):
    """Fine-tune the forget prompts on other answers: random, generic, refusal, empty or alternate.

    ℓ_f = mean NLL of the label; no gold answer is ever in the batch. `to`:

        random      the answer of a retain record about another entity (a refusal where there is none)
        generic     a vague line; of a document, its own text without names and numbers
        refusal     a refusal (this is `idk`)
        empty       the end token alone
        alternate   one of the record's `alternates`, the evaluation's distractors apart

    Where there are several, the label is drawn by (seed, record, epoch). Random labels are the baseline of
    Golatkar et al. 2020 (arXiv 1911.04933); refusals are those of Maini et al. 2024 (arXiv 2401.06121).
    """

    to: Literal["random", "generic", "refusal", "empty", "alternate"] = "random"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{VARIANTS[self.to]}.mean_nll",)

    def loss(self, forget: View) -> Tensor:
        label: View = getattr(forget, VARIANTS[self.to])
        return label.mean_nll
