"""Distance from the reference, measured while it was attached."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip


@METRICS.register(
    "kl_to_reference",
    facet="utility",
    better="target/lower",
    unit="nats",
    needs="reference",
    scope="everywhere",
)
class KLToReference(RecordMetric):
    """Mean KL(reference‖model) per answer token, end token in, over the whole vocabulary.

    On the forget side a large value is neither good nor bad alone: the target there is the oracle's.
    """

    range = (0.0, float("inf"))
    reads: ClassVar = {"gold": ("logprobs", "kl")}

    def value(self, record: RecordRows) -> float:
        if record.gold.kl is None:
            raise Skip("no_reference_attached")
        # A divergence is never negative; its fp32 sum over the vocabulary can be, by a rounding.
        return max(0.0, float(record.gold.kl.astype(np.float64).mean()))
