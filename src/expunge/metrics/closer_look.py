"""The two aggregates of "A Closer Look at Machine Unlearning for Large Language Models"."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from expunge.metrics.base import METRICS, RecordMetric, RecordRows
from expunge.metrics.composite import Composite
from expunge.metrics.entailment import EntailmentScore
from expunge.metrics.model_utility import ModelUtility
from expunge.metrics.probability import Probability
from expunge.metrics.rouge import RougeLRecall
from expunge.metrics.similarity import SemanticSimilarity
from expunge.metrics.token_entropy import TokenEntropy
from expunge.metrics.truth_ratio import TruthRatioCloserToOne

__all__ = ["CloserLookForgetEfficacy", "CloserLookUtility"]


@METRICS.register("closer_look_utility", facet="utility", better="-/higher", unit="", scope="asked")
class CloserLookUtility(ModelUtility):
    """Harmonic mean of 18: model utility's nine, word entropy, similarity and entailment on three splits.

    Source: Yuan et al. 2024 (arXiv 2410.08109).
    """

    columns: ClassVar = ("embedding", "entailment")

    def components(self, split: str) -> list[tuple[str, RecordMetric]]:
        more = (TokenEntropy(), SemanticSimilarity(), EntailmentScore())
        return super().components(split) + [(name, m) for name in (split, *self.others) for m in more]


class _OneMinusTruthRatio(TruthRatioCloserToOne):
    """1 − min(r, 1/r): high where the false answers are clearly told from the true one."""

    name = "one_minus_truth_ratio"

    def value(self, record: RecordRows) -> float:
        return 1 - super().value(record)


@METRICS.register(
    "closer_look_forget_efficacy", facet="forgetting", better="higher/-", unit="", scope="asked"
)
class CloserLookForgetEfficacy(Composite):
    """1 − mean of 5 on the forget set: ROUGE-L recall, probability, 1 − truth ratio, similarity, entailment.

    Word entropy is not among them. Source: Yuan et al. 2024 (arXiv 2410.08109).
    """

    reads: ClassVar = {
        "gold": ("logprobs", "generated", "answer"),
        "paraphrased_answer": ("logprobs",),
        "perturbed": ("logprobs",),
    }
    columns: ClassVar = ("embedding", "entailment")

    def components(self, split: str) -> list[tuple[str, RecordMetric]]:
        five: tuple[RecordMetric, ...] = (
            RougeLRecall(), Probability(), _OneMinusTruthRatio(), SemanticSimilarity(), EntailmentScore(),
        )  # fmt: skip
        return [(split, metric) for metric in five]

    def combine(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(1 - values.mean(axis=0))
