"""Model utility: nine values on three splits in one harmonic mean."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from expunge.metrics.base import METRICS, RecordMetric
from expunge.metrics.choice import ChoiceProbability
from expunge.metrics.composite import Composite
from expunge.metrics.probability import Probability
from expunge.metrics.rouge import RougeLRecall
from expunge.metrics.truth_ratio import TruthRatioTrueBetter


@METRICS.register("model_utility", facet="utility", better="-/higher", unit="", scope="asked")
class ModelUtility(Composite):
    """Harmonic mean of 9: {retain, real authors, world facts} × {probability, ROUGE-L recall, truth ratio}.

    The split that is scored is the retain one (`report`); on the `others` the probability is taken among
    the options. Near zero the mean ranks a damaged model above one that misses a single component:
    `details` holds the components, their arithmetic mean and the names of those that are 0.
    Source: Maini et al. 2024 (arXiv 2401.06121).
    """

    reads: ClassVar = {
        "gold": ("logprobs", "generated", "answer"),
        "paraphrased_answer": ("logprobs",),
        "perturbed": ("logprobs",),
        "choice": ("logprobs", "label"),
    }

    def __init__(self, others: tuple[str, ...] = ("real_authors", "world_facts")):
        self.others = others

    def components(self, split: str) -> list[tuple[str, RecordMetric]]:
        parts: list[tuple[str, RecordMetric]] = []
        for name in (split, *self.others):
            likelihood = Probability() if name == split else ChoiceProbability()
            parts += [(name, metric) for metric in (likelihood, RougeLRecall(), TruthRatioTrueBetter())]
        return parts

    def combine(self, values: np.ndarray) -> np.ndarray:
        """Harmonic mean; one zero makes it zero."""
        return np.asarray(len(values) / (1 / values).sum(axis=0))
