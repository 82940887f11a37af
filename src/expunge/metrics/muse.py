"""What a model says of what it read: the two text metrics of MUSE."""

from __future__ import annotations

import re
from typing import ClassVar

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip, column
from expunge.metrics.rouge import has_words, rouge

__all__ = ["KnowMem", "VerbMem"]


NEXT = re.compile(r"\n\n|\n?Question:")
"""Where a model that was given examples goes on to a question of its own."""


@METRICS.register("knowmem", facet="forgetting", better="lower/higher", unit="", scope="asked")
class KnowMem(RecordMetric):
    """ROUGE-L F of short greedy answers (32 tokens) to questions about what was read.

    Examples before the question belong to the prompt, as the record has it; what the answer goes on to after
    a blank line, or with a question of its own, is not read.
    Source: Shi et al. 2024 (arXiv 2407.06460).
    """

    reads: ClassVar = {"gold": ("answer",)}
    columns: ClassVar = ("short_answer",)

    def value(self, record: RecordRows) -> float:
        if not has_words(record.gold.answer):
            raise Skip("no_words_in_answer")
        answer = NEXT.split(column(record.gold, "short_answer"), maxsplit=1)[0]
        return rouge("rougeL", record.gold.answer, answer).fmeasure


@METRICS.register(
    "verbmem", facet="forgetting", better="lower/higher", unit="", scope="everywhere", profile="default"
)
class VerbMem(RecordMetric):
    """ROUGE-L F of the greedy continuation of a document's beginning (128 tokens) with the true one.

    Source: Shi et al. 2024 (arXiv 2407.06460).
    """

    reads: ClassVar = {"gold": ("answer",)}
    columns: ClassVar = ("recited",)

    def value(self, record: RecordRows) -> float:
        recited = column(record.gold, "recited")
        if not has_words(recited["true"]):
            raise Skip("no_words_in_continuation")
        return rouge("rougeL", recited["true"], recited["generated"]).fmeasure
