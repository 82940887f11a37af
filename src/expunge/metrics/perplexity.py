"""Perplexity of the answers, weighted by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from expunge.metrics.base import METRICS, ModelEvidence, RecordMetric, RecordRows, nll


@METRICS.register("perplexity", facet="utility", better="higher/lower", unit="")
class Perplexity(RecordMetric):
    """Perplexity over all tokens of the split: exp(Σ −ℓ / Σ T); +inf where it overflows.

    Two tokenizers have two perplexities: `details["nll_per_byte"]` compares across them.
    """

    range = (1.0, float("inf"))

    def value(self, record: RecordRows) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(nll(record.gold)))

    def weights(self, record: RecordRows, value: float) -> tuple[float, float]:
        return -float(record.gold.logprobs.astype(np.float64).sum()), len(record.gold.logprobs)

    def finish(self, ratio: Any) -> Any:
        return np.exp(ratio)

    def details(self, model: ModelEvidence, split: str) -> dict[str, Any]:
        rows = model[split].gold.values()
        nats = -sum(float(row.logprobs.astype(np.float64).sum()) for row in rows)
        num_bytes = sum(row.text_bytes for row in rows)
        return {"nll_per_byte": nats / num_bytes if num_bytes else None}
