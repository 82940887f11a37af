"""Model utility: nine values on three splits in one harmonic mean."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from expunge.metrics.base import METRICS, Metric, ModelEvidence, RecordMetric, Score
from expunge.metrics.choice import ChoiceProbability
from expunge.metrics.probability import Probability
from expunge.metrics.rouge import RougeLRecall
from expunge.metrics.truth_ratio import TruthRatioTrueBetter
from expunge.stats import Clusters, harmonic_mean, percentile_interval, seed_from


@METRICS.register("model_utility", facet="utility", better="-/higher", unit="", scope="asked")
class ModelUtility(Metric):
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
        """(split, metric) of each component."""
        parts: list[tuple[str, RecordMetric]] = []
        for name in (split, *self.others):
            likelihood = Probability() if name == split else ChoiceProbability()
            parts += [(name, metric) for metric in (likelihood, RougeLRecall(), TruthRatioTrueBetter())]
        return parts

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        scores = [metric.score(model, name, seed=seed) for name, metric in self.components(split)]
        missing = [f"{s.split}.{s.metric} ({s.reason})" for s in scores if s.value is None]
        if missing:
            return self.not_computable(split, "component " + ", ".join(missing))
        values = {f"{s.split}.{s.metric}": float(s.value or 0.0) for s in scores}
        details: dict[str, Any] = {
            "components": values,
            "arithmetic_mean": float(np.mean(list(values.values()))),
            "zero_components": [name for name, value in values.items() if value == 0],
        }
        low = high = None
        draws = [self._draws(model, s, seed) for s in scores]
        if all(d is not None for d in draws):
            with np.errstate(divide="ignore"):
                low, high = percentile_interval(len(draws) / (1 / np.array(draws)).sum(axis=0))
        # A harmonic mean of float sums may leave [0, 1] by a rounding.
        value = min(harmonic_mean(list(values.values())), 1.0)
        flags = tuple(dict.fromkeys(flag for s in scores for flag in s.flags))
        records = {(s.split, record) for s in scores for record in s.per_record}
        return Score(
            self.name, split, value, low, high, len(records), self.better(split), self.unit,
            flags=flags, settings=self.settings, details=details,
        )  # fmt: skip

    def _draws(self, model: ModelEvidence, score: Score, seed: int) -> np.ndarray | None:
        """Draws of one component; the entities drawn are the same for all components of a split."""
        evidence = model[score.split]
        ids = sorted(evidence.gold)
        clusters = Clusters(evidence.entities(ids), seed_from(seed, self.name, score.split))
        if clusters.count == 1:
            return None
        present = np.array([i in score.per_record for i in ids], dtype=float)
        return clusters.ratio(np.array([score.per_record.get(i, 0.0) for i in ids]), present)
