"""Zero retrain forgetting: as ignorant as a model that was never trained?"""

from __future__ import annotations

from typing import ClassVar

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, column


@METRICS.register("zrf", facet="forgetting", better="target/-", unit="bits", scope="forget", profile="deep")
class ZRF(RecordMetric):
    """1 − mean Jensen–Shannon divergence in bits from the same architecture with random weights.

    1 = as ignorant as the random model; the target is the oracle's value, not 1: who never saw the records
    still speaks the language. Source: Chundawat et al. 2023 (arXiv 2205.08096).
    """

    columns: ClassVar = ("js_random",)

    def value(self, record: RecordRows) -> float:
        return 1.0 - min(1.0, float(column(record.gold, "js_random")))
