"""Negative log-likelihood of the answer."""

from __future__ import annotations

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, nll


@METRICS.register("nll", facet="forgetting", better="higher/lower", unit="nats/token", scope="asked")
class NegativeLogLikelihood(RecordMetric):
    """Mean negative log-likelihood per token of the answer, end token in: −(1/T) Σ ℓ_t."""

    range = (0.0, float("inf"))

    def value(self, record: RecordRows) -> float:
        return nll(record.gold)
