"""Does the generated text follow from the answer, or the answer from it?"""

from __future__ import annotations

from typing import ClassVar

from expunge.evidence import is_forget_side
from expunge.metrics.base import METRICS, ModelEvidence, RecordMetric, RecordRows, Score, Skip, column
from expunge.metrics.rouge import has_words, rouge
from expunge.metrics.similarity import read_by, readers_of

__all__ = ["ANSWER_FOLLOWS", "GATE", "TEXT_FOLLOWS", "EntailmentScore", "direction", "gated"]

GATE = 0.1
"""Texts that recall less of the answer (ROUGE-L) entail nothing; nobody is asked."""

ANSWER_FOLLOWS = "answer_from_text"
"""Premise: the generated text, hypothesis: the answer. Is what was to be forgotten still told?"""

TEXT_FOLLOWS = "text_from_answer"
"""Premise: the answer, hypothesis: the generated text. Is what is said still true?"""


def direction(split: str) -> str:
    """Which of the two is asked on this side of the scope."""
    return ANSWER_FOLLOWS if is_forget_side(split) else TEXT_FOLLOWS


def gated(answer: str, generated: str) -> bool:
    return rouge("rougeL", answer, generated).recall < GATE


@METRICS.register(
    "entailment_score",
    facet="forgetting",
    better="lower/higher",
    unit="",
    scope="everywhere",
    profile="default",
)
class EntailmentScore(RecordMetric):
    """Share of records whose text a judge of entailment accepts: forget, text ⊨ answer; keep, answer ⊨ text.

    A text whose ROUGE-L recall is below 0.1 scores 0 unasked. The judge (its name and fingerprint) stands in
    the score's settings. Source: Yuan et al. 2024 (arXiv 2410.08109).
    """

    reads: ClassVar = {"gold": ("generated", "answer")}
    columns: ClassVar = ("entailment",)

    def value(self, record: RecordRows) -> float:
        row = record.gold
        if row.generated is None:
            raise Skip("not_generated")
        if not has_words(row.answer):
            raise Skip("no_words_in_answer")
        if gated(row.answer, row.generated):
            return 0.0
        label = column(row, "entailment").get(direction(row.split))
        if label is None:
            raise Skip("not_judged_in_this_direction")
        return float(label == "entailment")

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        judges = readers_of(model, split, "entailment", "judge")
        if len(judges) > 1:
            return self.not_computable(split, f"mixed_judges: {', '.join(judges)}")
        score = super().score(model, split, original=original, oracle=oracle, seed=seed)
        return read_by(score, "judge", judges)
