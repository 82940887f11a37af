"""Completeness: how much of what it says is what the oracle says."""

from __future__ import annotations

from typing import ClassVar

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip


@METRICS.register(
    "completeness", facet="forgetting", better="higher/-", unit="", needs="oracle", scope="forget",
    profile="default",
)  # fmt: skip
class Completeness(RecordMetric):
    """Jaccard overlap of the (record, greedy text) pairs of model and oracle: |A∩B| / |A∪B|.

    With one text each and s equal ones of N records that is s/(2N − s), not the share s/N. White space does
    not count. Source: Nguyen et al. 2022 (arXiv 2209.02299).
    """

    reads: ClassVar = {"gold": ("logprobs", "generated")}

    def value(self, record: RecordRows) -> float:
        if record.oracle is None or record.oracle.generated is None:
            raise Skip("no_oracle")
        if record.gold.generated is None:
            raise Skip("not_generated")
        return float(record.gold.generated.split() == record.oracle.generated.split())

    def weights(self, record: RecordRows, value: float) -> tuple[float, float]:
        return value, 2.0 - value
