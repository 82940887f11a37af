"""The task score of SemEval 2025 task 4: completions and answers, of what must go and of what must stay.

It folds forgetting and utility into one number, so it is no registered metric and stands in no report: a
model that knows all and one that knows nothing score 0 alike.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np

from expunge.metrics.base import ModelEvidence, RecordMetric, RecordRows, Score, Skip
from expunge.metrics.composite import Composite
from expunge.metrics.exact_match import ExactMatch
from expunge.metrics.rouge import RougeLRecall

__all__ = ["SemevalTaskScore"]

_ID = re.compile(r"(?P<task>task\d)\..*(?P<asked>sc|qa)\d*")
"""What a record of lume is called: task, document, completion or question."""

_MEASURES: dict[str, RecordMetric] = {"sc": RougeLRecall(), "qa": ExactMatch()}


def _part(record_id: str) -> tuple[str, str]:
    """Task and kind of a record; another benchmark's are questions of one task."""
    found = _ID.fullmatch(record_id)
    return (found["task"], found["asked"]) if found else ("all", "qa")


class _Part(RecordMetric):
    """The measure of one kind of record of one task; of what must go, what it lacks to 1."""

    name: str  # type: ignore[misc]
    reads: ClassVar = {"gold": ("generated", "answer")}

    def __init__(self, task: str, asked: str, goes: bool):
        self.name = f"{task}_{asked}"
        self._part, self._goes = (task, asked), goes

    def value(self, record: RecordRows) -> float:
        if _part(record.record_id) != self._part:
            raise Skip("another_part")
        value = _MEASURES[self._part[1]].value(record)
        return 1 - value if self._goes else value


class SemevalTaskScore(Composite):
    """Harmonic mean over tasks of ROUGE-L recall of completions and exact match of answers; 1 − x on forget.

    Of each task that has records, four numbers: completions and questions, of what must go (1 − x) and of
    what must stay (x, on the `others`). Source: Ramakrishna et al. 2025 (arXiv 2504.02883).
    """

    name = "semeval_task_score"
    direction = "higher"
    reads: ClassVar = {"gold": ("generated", "answer")}

    def __init__(self, others: tuple[str, ...] = ("report",)):
        self.others = others
        self._parts: list[tuple[str, str]] = []

    def components(self, split: str) -> list[tuple[str, RecordMetric]]:
        return [(n, _Part(*part, n == split)) for part in self._parts for n in (split, *self.others)]

    def combine(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(len(values) / (1 / values).sum(axis=0))

    def score(self, model: ModelEvidence, split: str, **compared: Any) -> Score:
        if split not in model or not model[split].gold:
            return self.not_computable(split, "empty_split")
        metric = SemevalTaskScore(self.others)
        metric._parts = sorted(set(map(_part, model[split].gold)))
        return Composite.score(metric, model, split, **compared)
