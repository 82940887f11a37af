"""Relearning the forget set itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from expunge.attacks.base import ATTACKS, Field, Profile
from expunge.attacks.finetuning import Arm, FinetuningAttack, Trial


@ATTACKS.register(
    "relearn",
    threat="fine-tune",
    kind="weights",
    injects="the answer",
    tier=1,
    profiles=["default", "deep"],
    budget="3 rates × 50 steps × 2 seeds (deep: 100 steps, 3 seeds, LoRA, cosine, bf16)",
    source="Lynch et al. 2024, arXiv 2402.16835; Fan et al. 2025, arXiv 2502.05374",
)
@dataclass(frozen=True, kw_only=True)
class Relearn(FinetuningAttack):
    """Fine-tune on the forget set and watch how fast it comes back: only the speed against the oracle counts.

    The answers are injected, so a high end point says nothing. For the same reason the placebo is the holdout
    relearned in a run of its own, as many records as there are to forget: what it takes to learn such facts
    without having seen them.
    """

    SWEEPS: ClassVar[Mapping[Profile, tuple[Arm, ...]]] = {
        "default": (Arm(), Arm(seed=1)),
        "deep": (
            Arm(), Arm(seed=1), Arm(seed=2), Arm("lora"), Arm("full", "cosine"), Arm("lora", "cosine"),
            Arm(bf16=True),
        ),
    }  # fmt: skip

    def trials(self, field: Field) -> Sequence[Trial]:
        forget = field.request.forget
        trials = [Trial(forget, {"forget": forget})]
        if holdout := field.scored().get("holdout", ())[: len(forget)]:
            trials.append(Trial(holdout, {"holdout": holdout}))
        return trials
