"""What the gradient of an answer's loss tells: membership, and how much the weights know of it."""

from __future__ import annotations

from typing import ClassVar

from expunge.evidence import Row
from expunge.metrics.base import METRICS, RecordMetric, RecordRows, column
from expunge.metrics.mia import Membership


@METRICS.register(
    "mia_gradnorm", facet="privacy", better="target/-", unit="AUC", needs="holdout", scope="forget",
    profile="deep",
)  # fmt: skip
class MiaGradnorm(Membership):
    """Members have a small gradient: signal −‖∇ nll‖₂, one norm over all weights, end token out.

    Source: Nasr et al. 2019 (arXiv 1812.00910).
    """

    columns: ClassVar = ("grad_norm",)

    def signal(self, row: Row, reference: Row | None) -> float:
        return -float(column(row, "grad_norm"))


@METRICS.register(
    "fisher_trace", facet="forgetting", better="target/-", unit="nats²", scope="forget", profile="deep"
)
class FisherTrace(RecordMetric):
    """Trace of the empirical Fisher information on the forget set: mean ‖∇ log p(y|x)‖² per record.

    How much the weights would still learn from, or lean on, these records; ∇ is of the mean log-likelihood
    per token. Neither small nor large is good by itself (it is near 0 where a record is memorized, and where
    the model is certain of something else): the target is the oracle's.
    Source: Becker and Liebig 2022 (arXiv 2208.10836).
    """

    range = (0.0, float("inf"))
    columns: ClassVar = ("grad_norm",)

    def value(self, record: RecordRows) -> float:
        return float(column(record.gold, "grad_norm")) ** 2
