"""Exact match: the generated text is the answer."""

from __future__ import annotations

from typing import ClassVar

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip


@METRICS.register("exact_match", facet="forgetting", better="lower/higher", unit="", scope="asked")
class ExactMatch(RecordMetric):
    """Share of records whose greedy text is the answer; case, outer blanks and a last full stop do not count.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250).
    """

    reads: ClassVar = {"gold": ("generated", "answer")}

    def value(self, record: RecordRows) -> float:
        if record.gold.generated is None:
            raise Skip("not_generated")
        return float(_plain(record.gold.generated) == _plain(record.gold.answer))


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").rstrip().casefold()
