"""Choices answered by their letter, as exams are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip, column


@METRICS.register(
    "choice_accuracy_letter",
    facet="forgetting",
    better="target/higher",
    unit="",
    scope="everywhere",
    profile="default",
)
class ChoiceAccuracyLetter(RecordMetric):
    """Share of records whose right letter is likeliest when the options are listed; m on a tie give 1/m.

    The mode `letter` of `choice_accuracy`: the options stand in the prompt, and the log-probability of each
    label is taken where the answer begins. On the forget side the target is the oracle's accuracy, without
    one chance. Source: Hendrycks et al. 2020 (arXiv 2009.03300); Li et al. 2024 (arXiv 2403.03218).
    """

    reads: ClassVar = {"gold": (), "choice": ("label",)}
    columns: ClassVar = ("letters",)

    def value(self, record: RecordRows) -> float:
        score, right = np.array(column(record.gold, "letters"), dtype=float), _right(record)
        if len(score) != len(right):
            raise Skip("letters_of_other_choices")
        if np.isneginf(score).all():
            raise Skip("no_option_possible")
        best = score == score.max()
        return float((best & right).sum() / best.sum())

    def details(self, records: Sequence[RecordRows]) -> dict[str, float]:
        return {"chance": float(np.mean([_right(record).mean() for record in records]))}

    def fallback_target(self, details: Mapping[str, float]) -> float:
        return details["chance"]


def _right(record: RecordRows) -> np.ndarray:
    right = np.array([bool(row.label) for row in record.of("choice")])
    if not right.any():
        raise Skip("no_right_choice")
    return right
