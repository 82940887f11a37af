"""Overlap of the generated text with the answer, in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import ClassVar

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score as Overlap
from rouge_score.tokenizers import Tokenizer

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip

# The library's own word pattern is ASCII: it deletes other scripts, and every answer then looks forgotten.
_WORD = re.compile(r"[^\W_]+")

_STEMMED = 4
"""Shorter words are left as they are."""


class UnicodeWords(Tokenizer):
    """Lower-case runs of letters and digits of any script; `stem`: Porter's, of words of four letters on."""

    def __init__(self, stem: bool = False):
        self.stem = _porter() if stem else None

    def tokenize(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        if self.stem is None:
            return words
        return [self.stem(word) if len(word) >= _STEMMED else word for word in words]


def _porter() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


@cache
def _scorer(kind: str, stem: bool) -> RougeScorer:
    return RougeScorer([kind], tokenizer=UnicodeWords(stem))


def rouge(kind: str, reference: str, candidate: str, *, stem: bool = False) -> Overlap:
    """(precision, recall, fmeasure) of "rouge1" or "rougeL" (Lin 2004); an empty candidate scores 0."""
    return _scorer(kind, stem).score(reference, candidate)[kind]


def has_words(text: str) -> bool:
    return _WORD.search(text) is not None


class _Rouge(RecordMetric):
    """`stem`: words are cut to their stems before they are compared."""

    reads: ClassVar = {"gold": ("generated", "answer")}

    def __init__(self, stem: bool = False):
        self.stem = stem

    def overlap(self, kind: str, record: RecordRows) -> Overlap:
        if record.gold.generated is None:
            raise Skip("not_generated")
        if not has_words(record.gold.answer):
            raise Skip("no_words_in_answer")
        return rouge(kind, record.gold.answer, record.gold.generated, stem=self.stem)


@METRICS.register("rouge1_recall", facet="forgetting", better="lower/higher", unit="", scope="asked")
class Rouge1Recall(_Rouge):
    """Share of the answer's words that the greedy text contains, clipped by counts."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rouge1", record).recall


@METRICS.register("rouge1_precision", facet="forgetting", better="lower/higher", unit="", scope="asked")
class Rouge1Precision(_Rouge):
    """Share of the greedy text's words that the answer contains, clipped by counts."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rouge1", record).precision


@METRICS.register("rouge1_f", facet="forgetting", better="lower/higher", unit="", scope="asked")
class Rouge1F(_Rouge):
    """F measure of the words that answer and greedy text share."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rouge1", record).fmeasure


@METRICS.register("rougeL_recall", facet="forgetting", better="lower/higher", unit="", scope="everywhere")
class RougeLRecall(_Rouge):
    """Longest common subsequence of answer and greedy text over the answer's words (as on TOFU)."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rougeL", record).recall


@METRICS.register("rougeL_precision", facet="forgetting", better="lower/higher", unit="", scope="asked")
class RougeLPrecision(_Rouge):
    """Longest common subsequence of answer and greedy text over the greedy text's words."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rougeL", record).precision


@METRICS.register("rougeL_f", facet="forgetting", better="lower/higher", unit="", scope="asked")
class RougeLF(_Rouge):
    """F measure of the longest common subsequence of answer and greedy text (as on MUSE)."""

    def value(self, record: RecordRows) -> float:
        return self.overlap("rougeL", record).fmeasure
