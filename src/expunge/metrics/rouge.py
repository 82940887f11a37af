"""Overlap of the generated text with the answer, in words."""

from __future__ import annotations

import re
from functools import cache
from typing import ClassVar

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score as Overlap
from rouge_score.tokenizers import Tokenizer

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip

# The library's own word pattern is ASCII: it deletes other scripts, and every answer then looks forgotten.
_WORD = re.compile(r"[^\W_]+")


class UnicodeWords(Tokenizer):
    """Lower-case runs of letters and digits of any script."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@cache
def _scorer(kind: str) -> RougeScorer:
    return RougeScorer([kind], tokenizer=UnicodeWords())


def rouge(kind: str, reference: str, candidate: str) -> Overlap:
    """(precision, recall, fmeasure) of "rouge1" or "rougeL" (Lin 2004); an empty candidate scores 0."""
    return _scorer(kind).score(reference, candidate)[kind]


class _Rouge(RecordMetric):
    reads: ClassVar = {"gold": ("generated", "answer")}

    def overlap(self, kind: str, record: RecordRows) -> Overlap:
        if record.gold.generated is None:
            raise Skip("not_generated")
        if not _WORD.search(record.gold.answer):
            raise Skip("no_words_in_answer")
        return rouge(kind, record.gold.answer, record.gold.generated)


@METRICS.register("rouge1_recall", facet="forgetting", better="lower/higher", unit="", scope="asked")
class Rouge1Recall(_Rouge):
    """Share of the answer's words that the greedy text contains, clipped by counts."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rouge1", record).recall


@METRICS.register("rougeL_recall", facet="forgetting", better="lower/higher", unit="", scope="everywhere")
class RougeLRecall(_Rouge):
    """Longest common subsequence of answer and greedy text over the answer's words (as on TOFU)."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rougeL", record).recall


@METRICS.register("rougeL_f", facet="forgetting", better="lower/higher", unit="", scope="asked")
class RougeLF(_Rouge):
    """F measure of the longest common subsequence of answer and greedy text (as on MUSE)."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rougeL", record).fmeasure
