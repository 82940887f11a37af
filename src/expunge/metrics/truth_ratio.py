"""Truth ratio: are false answers likelier than the true one? Three named aggregations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from expunge.evidence import Row
from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip, nll, one_of

OPTION_MEANS = ("geometric", "arithmetic")


def log_truth_ratio(record: RecordRows, option_mean: str = "geometric") -> float:
    """d = ln r = l_c − l_w: nll of the true answer reworded minus that of the false answers.

    The gold answer stands for the reworded one where the split has none. `option_mean` says how several
    answers are averaged on the false side: their nll ("geometric") or their probabilities ("arithmetic").
    """
    reworded = record.evidence.of("paraphrased_answer")
    true = _nlls(record.of("paraphrased_answer") if reworded else [record.gold])
    false = _nlls(record.of("perturbed"))
    right = float(np.mean(true))
    wrong = float(np.mean(false))
    if option_mean == "arithmetic":
        wrong = math.log(len(false)) - float(np.logaddexp.reduce([-loss for loss in false]))
    if math.isinf(right) and math.isinf(wrong):
        raise Skip("no_answer_possible")
    return right - wrong


def _nlls(rows: Sequence[Row]) -> list[float]:
    return [nll(row) for row in rows]


class _TruthRatio(RecordMetric):
    reads: ClassVar = {"gold": ("logprobs",), "paraphrased_answer": ("logprobs",), "perturbed": ("logprobs",)}

    def __init__(self, option_mean: str = "geometric"):
        self.option_mean = one_of(self.name, "option_mean", option_mean, OPTION_MEANS)

    def log_ratio(self, record: RecordRows) -> float:
        return log_truth_ratio(record, self.option_mean)


@METRICS.register(
    "truth_ratio_closer_to_1", facet="forgetting", better="higher/lower", unit="", scope="forget"
)
class TruthRatioCloserToOne(_TruthRatio):
    """Mean of min(r, 1/r): 1 where true and false answers are equally likely.

    Source: Maini et al. 2024 (arXiv 2401.06121).
    """

    def value(self, record: RecordRows) -> float:
        return math.exp(-abs(self.log_ratio(record)))


@METRICS.register(
    "truth_ratio_true_better", facet="forgetting", better="lower/higher", unit="", scope="forget"
)
class TruthRatioTrueBetter(_TruthRatio):
    """Mean of max(0, 1 − r): how clearly the true answer is preferred.

    Source: Maini et al. 2024 (arXiv 2401.06121).
    """

    def value(self, record: RecordRows) -> float:
        return -math.expm1(min(0.0, self.log_ratio(record)))


@METRICS.register("truth_ratio_prob_mean", facet="forgetting", better="lower/higher", unit="", scope="asked")
class TruthRatioProbMean(_TruthRatio):
    """Mean of C/(C + W) = sigmoid(−ln r): the probability of the true answer against the false ones."""

    def value(self, record: RecordRows) -> float:
        return 0.5 * (1.0 - math.tanh(0.5 * self.log_ratio(record)))
