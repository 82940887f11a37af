"""Forget quality: do the truth ratios look like the oracle's?"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from expunge.evidence import Evidence
from expunge.metrics.base import METRICS, Metric, ModelEvidence, RecordRows, Score, Skip, nonfinite, one_of
from expunge.metrics.truth_ratio import OPTION_MEANS, log_truth_ratio
from expunge.stats import Clusters, seed_from


@METRICS.register(
    "forget_quality", facet="forgetting", better="higher/-", unit="p", needs="oracle", scope="forget"
)
class ForgetQuality(Metric):
    """Two-sample Kolmogorov–Smirnov p-value between the truth ratios r of the model and of the oracle.

    `per_record` holds r; `details`: the distance D with its interval (p has none), log₁₀ p, both sizes.
    Values of different sizes are not comparable, and records of one entity make p too small.
    Source: Maini et al. 2024 (arXiv 2401.06121).
    """

    reads: ClassVar = {"gold": ("logprobs",), "paraphrased_answer": ("logprobs",), "perturbed": ("logprobs",)}

    def __init__(self, option_mean: str = "geometric"):
        self.option_mean = one_of("forget_quality", "option_mean", option_mean, OPTION_MEANS)

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        from scipy.stats import ks_2samp

        if split not in model or not model[split].gold:
            return self.not_computable(split, "empty_split")
        if oracle is None or split not in oracle:
            return self.not_computable(split, "no_oracle")
        if any(nonfinite(side[split].rows) for side in (model, oracle)):
            return self.not_computable(split, "nonfinite_evidence")
        ratios, skipped = self._log_ratios(model[split])
        expected, _ = self._log_ratios(oracle[split])
        if not ratios or not expected:
            return self.not_computable(split, "every_record_skipped: " + ", ".join(skipped), skipped=skipped)

        # The test sees ranks only: ln r instead of r changes nothing and cannot overflow.
        test = ks_2samp(list(ratios.values()), list(expected.values()))
        details: dict[str, Any] = {
            "distance": float(test.statistic),
            "log10_p": math.log10(test.pvalue) if test.pvalue > 0 else -math.inf,
            "n_oracle": len(expected),
        }
        ids, oracle_ids = sorted(ratios), sorted(expected)
        entities = model[split].entities(ids) + oracle[split].entities(oracle_ids)
        clusters = Clusters(entities, seed_from(seed, self.name))
        if clusters.count > 1:
            draws = _distance_draws([ratios[i] for i in ids], [expected[i] for i in oracle_ids], clusters)
            details["distance_low"], details["distance_high"] = clusters.ends(draws)
        with np.errstate(over="ignore"):
            per_record = {record: float(np.exp(d)) for record, d in ratios.items()}
        return Score(
            self.name, split, float(test.pvalue), None, None, len(ratios), self.better(split), self.unit,
            per_record, skipped, clusters.flags, self.settings, details,
        )  # fmt: skip

    def _log_ratios(self, evidence: Evidence) -> tuple[dict[str, float], dict[str, int]]:
        ratios: dict[str, float] = {}
        skipped: dict[str, int] = {}
        for record_id, gold in evidence.gold.items():
            try:
                if gold.num_answer == 0:
                    raise Skip("empty_answer")
                ratios[record_id] = log_truth_ratio(RecordRows(evidence, record_id, gold), self.option_mean)
            except Skip as skip:
                skipped[str(skip)] = skipped.get(str(skip), 0) + 1
        return ratios, skipped


def _distance_draws(ours: list[float], theirs: list[float], clusters: Clusters) -> np.ndarray:
    """Draws of D; an entity is drawn for both models at once, [draws]."""
    pooled = np.array(ours + theirs)
    points = np.unique(pooled)
    below = (pooled[:, None] <= points).astype(float)
    is_ours = np.arange(len(pooled)) < len(ours)
    counts = clusters.counts()
    share = []
    for side in (is_ours, ~is_ours):
        total = counts @ clusters.totals(side)
        with np.errstate(invalid="ignore"):
            share.append(counts @ clusters.totals(below * side[:, None]) / total[:, None])
    return np.abs(share[0] - share[1]).max(axis=1)
