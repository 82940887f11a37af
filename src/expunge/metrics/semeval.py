"""The task score of SemEval 2025 task 4: completions and answers, of what must go and of what must stay."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np

from expunge.metrics.base import METRICS, ModelEvidence, RecordMetric, RecordRows, Score, Skip
from expunge.metrics.composite import Composite
from expunge.metrics.exact_match import ExactMatch
from expunge.metrics.rouge import RougeLRecall

_ID = re.compile(r"(?P<task>task\d)\..*(?P<asked>sc|qa)\d*")
"""What a record of lume is called: task, document, completion or question."""

_MEASURES: dict[str, RecordMetric] = {"sc": RougeLRecall(), "qa": ExactMatch()}
_TASKS = ("task1", "task2", "task3")


def _parts(record_id: str) -> tuple[str, str]:
    """Task and kind of a record; empty for another benchmark's."""
    found = _ID.fullmatch(record_id)
    return (found["task"], found["asked"]) if found else ("", "")


class _Part(RecordMetric):
    """The measure of one kind of record of one task; of what must go, what it lacks to 1."""

    name: str  # type: ignore[misc]
    reads: ClassVar = {"gold": ("generated", "answer")}

    def __init__(self, task: str, asked: str, goes: bool):
        self.name = f"{task}_{asked}"
        self._part, self._goes = (task, asked), goes

    def value(self, record: RecordRows) -> float:
        if _parts(record.record_id) != self._part:
            raise Skip("another_part")
        value = _MEASURES[self._part[1]].value(record)
        return 1 - value if self._goes else value


@METRICS.register("semeval_task_score", facet="forgetting", better="higher/-", unit="", scope="asked")
class SemevalTaskScore(Composite):
    """Harmonic mean over tasks of {completions: ROUGE-L recall, questions: exact match} on what must stay,
    and of 1 − each on what must go: 12 numbers, 4 for each task that has records.

    Source: Ramakrishna et al. 2025 (arXiv 2504.02883).
    """

    reads: ClassVar = {"gold": ("generated", "answer")}

    def __init__(self, others: tuple[str, ...] = ("report",), tasks: tuple[str, ...] = _TASKS):
        self.others = others
        self.tasks = tasks

    def components(self, split: str) -> list[tuple[str, RecordMetric]]:
        return [
            (name, _Part(task, asked, name == split))
            for task in self.tasks
            for name in (split, *self.others)
            for asked in _MEASURES
        ]

    def combine(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(len(values) / (1 / values).sum(axis=0))

    def score(self, model: ModelEvidence, split: str, **compared: Any) -> Score:
        there = {_parts(record)[0] for record in model[split].gold} if split in model else set()
        tasks = tuple(task for task in self.tasks if task in there)
        if not tasks:
            return self.not_computable(split, "no_records_of_these_tasks")
        if tasks == self.tasks:
            return super().score(model, split, **compared)
        return SemevalTaskScore(self.others, tasks).score(model, split, **compared)
