"""How likely the answer is, per token."""

from __future__ import annotations

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, probability


@METRICS.register("probability", facet="forgetting", better="lower/higher", unit="", scope="everywhere")
class Probability(RecordMetric):
    """Geometric mean token probability of the answer, end token in: exp(−nll).

    Source: Maini et al. 2024 (arXiv 2401.06121).
    """

    def value(self, record: RecordRows) -> float:
        return probability(record.gold)
