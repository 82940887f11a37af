"""Relearning the forget set itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.attacks.base import ATTACKS, Field
from expunge.attacks.finetuning import FinetuningAttack, Trial


@ATTACKS.register(
    "relearn",
    threat="fine-tune",
    kind="weights",
    injects="the answer",
    tier=1,
    profiles=["default", "deep"],
    source="Lynch et al. 2024, arXiv 2402.16835; Fan et al. 2025, arXiv 2502.05374",
)
@dataclass(frozen=True, kw_only=True)
class Relearn(FinetuningAttack):
    """Fine-tune on the forget set and watch how fast it comes back: only the speed against the oracle counts.

    The answers are injected, so a high end point says nothing. For the same reason the placebo is the holdout
    relearned in a run of its own, as many records as there are to forget: what it takes to learn such facts
    without having seen them.
    """

    def trials(self, field: Field) -> Sequence[Trial]:
        forget = field.request.forget
        trials = [Trial(forget, {"forget": forget})]
        if holdout := field.scored().get("holdout", ())[: len(forget)]:
            trials.append(Trial(holdout, {"holdout": holdout}))
        return trials
