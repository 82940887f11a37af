"""Perplexity of the answers, weighted by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, nll


@METRICS.register("perplexity", facet="utility", better="higher/lower", unit="", scope="everywhere")
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

    def details(self, records: Sequence[RecordRows]) -> dict[str, Any]:
        nats = sum(self.weights(record, 0.0)[0] for record in records)
        num_bytes = sum(record.gold.text_bytes for record in records)
        return {"nll_per_byte": nats / num_bytes if num_bytes else None}
