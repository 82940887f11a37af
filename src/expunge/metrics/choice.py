"""Answers chosen among options: the choices of a record, or its gold answer against the false ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from expunge.evidence import Row
from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip, nll, one_of


class Options(NamedTuple):
    rows: list[Row]
    right: np.ndarray  # bool[K]


def options(record: RecordRows) -> Options:
    """The `choice` rows with their labels where the record has them, else gold and the `perturbed` rows."""
    choices = record.evidence.of("choice").get(record.record_id)
    rows = list(choices) if choices else [record.gold, *record.of("perturbed")]
    right = np.array([bool(row.label) for row in rows]) if choices else np.arange(len(rows)) == 0
    if not right.any():
        raise Skip("no_right_choice")
    if right.all():
        raise Skip("no_false_choice")
    if any(len(row.logprobs) == 0 for row in rows):
        raise Skip("empty_choice")
    return Options(rows, right)


READS = {
    "gold": ("logprobs", "text_bytes"),
    "choice": ("logprobs", "text_bytes", "label"),
    "perturbed": ("logprobs", "text_bytes"),
}


@METRICS.register("choice_probability", facet="forgetting", better="lower/higher", unit="", scope="asked")
class ChoiceProbability(RecordMetric):
    """Probability of the right answer among the options, each taken per token: softmax of −nll.

    Source: Maini et al. 2024 (arXiv 2401.06121), real authors and world facts.
    """

    reads: ClassVar = READS

    def value(self, record: RecordRows) -> float:
        rows, right = options(record)
        log_p = np.array([-nll(row) for row in rows])
        if np.isneginf(log_p).all():
            raise Skip("no_option_possible")
        odds = np.exp(log_p - log_p.max())
        return odds[right].sum() / odds.sum()


def _sum(row: Row) -> float:
    return float(row.logprobs.astype(np.float64).sum())


MODES = {
    "token_mean": lambda row: -nll(row),
    "sum": _sum,
    "byte_mean": lambda row: _sum(row) / max(row.text_bytes, 1),
}


@METRICS.register("choice_accuracy", facet="forgetting", better="target/higher", unit="", scope="everywhere")
class ChoiceAccuracy(RecordMetric):
    """Share of records whose right answer has the highest log-probability; m options on a tie give 1/m.

    `mode` is how an option's log-probability is taken: "token_mean", "sum" or "byte_mean". On the forget
    side the target is the oracle's accuracy, without one chance, the mean of 1/K: below is a signal as well.
    Source: Li et al. 2024 (arXiv 2403.03218); Hendrycks et al. 2020 (arXiv 2009.03300).
    """

    reads: ClassVar = READS

    def __init__(self, mode: str = "token_mean"):
        self.mode = one_of("choice_accuracy", "mode", mode, list(MODES))

    def value(self, record: RecordRows) -> float:
        rows, right = options(record)
        score = np.array([MODES[self.mode](row) for row in rows])
        best = score == score.max()
        return (best & right).sum() / best.sum()

    def details(self, records: Sequence[RecordRows]) -> dict[str, float]:
        return {"chance": float(np.mean([options(record).right.mean() for record in records]))}

    def fallback_target(self, details: Mapping[str, float]) -> float:
        return details["chance"]
