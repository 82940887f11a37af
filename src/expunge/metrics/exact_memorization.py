"""Exact memorization: how many answer tokens the model would pick itself."""

from __future__ import annotations

from typing import ClassVar

from expunge.metrics.base import METRICS, RecordMetric, RecordRows


@METRICS.register(
    "exact_memorization", facet="forgetting", better="lower/higher", unit="", scope="everywhere"
)
class ExactMemorization(RecordMetric):
    """Share of answer tokens that are the arg max given the gold tokens before them; end token out.

    Source: Tirumala et al. 2022 (arXiv 2205.10770).
    """

    reads: ClassVar = {"gold": ("hits",)}

    def value(self, record: RecordRows) -> float:
        return float(record.gold.hits[record.gold.answer_span].mean())
