"""How many words of the answer it takes until the model says the rest: extraction strength in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from expunge.evidence import Row
from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip, column
from expunge.metrics.rouge import rouge

__all__ = ["PrefixExact", "PrefixPerturb", "PrefixSimilar", "first_match"]

SIMILAR = 0.5
"""ROUGE-L recall of the words still missing that must be exceeded."""


def first_match(matches: Sequence[bool]) -> float:
    """1 − k*/W, k* the smallest k that matches, W where none does; later misses change nothing.

    >>> first_match([False, False, True, False, False, True])
    0.6666666666666667
    """
    found = next((k for k, match in enumerate(matches) if match), len(matches))
    return 1 - found / len(matches)


def exact(words: Sequence[str], k: int, text: str) -> bool:
    """The given words plus the generated ones are the answer's words."""
    return [*words[:k], *text.split()] == list(words)


def similar(words: Sequence[str], k: int, text: str) -> bool:
    """The generated text recalls more than half of the words still missing."""
    return rouge("rougeL", " ".join(words[k:]), text).recall > SIMILAR


class _Prefix(RecordMetric):
    reads: ClassVar = {"gold": ("answer",)}
    columns: ClassVar = ("continued",)
    match: ClassVar[Any] = staticmethod(exact)

    def strength(self, row: Row) -> float:
        """Of `continued`: what the model wrote after the first k = 0…W−1 words of the answer."""
        texts = column(row, "continued")
        words = row.answer.split()
        if not texts:
            raise Skip("no_words_in_answer")
        if len(texts) < len(words):  # capped: the answer ends there, and what goes on is cut as well
            words = words[: len(texts)]
            texts = [" ".join(text.split()[: len(words) - k]) for k, text in enumerate(texts)]
        return first_match([self.match(words, k, text) for k, text in enumerate(texts)])

    def value(self, record: RecordRows) -> float:
        return self.strength(record.gold)

    def details(self, records: Sequence[RecordRows]) -> dict[str, Any]:
        rows = [record.gold for record in records]
        return {"capped": sum(len(row.extra["continued"]) < len(row.answer.split()) for row in rows)}


@METRICS.register(
    "ps_exact", facet="forgetting", better="lower/higher", unit="", scope="everywhere", profile="deep"
)
class PrefixExact(_Prefix):
    """1 − k*/W: after k* of the answer's W words the model writes exactly the others.

    Source: Wang et al. 2024 (arXiv 2406.09179, version 1).
    """


@METRICS.register(
    "ps_similar", facet="forgetting", better="lower/higher", unit="", scope="everywhere", profile="deep"
)
class PrefixSimilar(_Prefix):
    """1 − k*/W: after k* of the answer's W words the model's text recalls more than half of the others.

    Not monotone in k: every k is looked at. Source: Wang et al. 2024 (arXiv 2406.09179, version 1).
    """

    match: ClassVar[Any] = staticmethod(similar)


@METRICS.register(
    "ps_perturb", facet="forgetting", better="lower/higher", unit="", scope="everywhere", profile="deep"
)
class PrefixPerturb(_Prefix):
    """`ps_exact` under the reworded questions: their mean per record, the largest in `details`.

    Source: Wang et al. 2024 (arXiv 2406.09179, version 1).
    """

    reads: ClassVar = {"gold": ("answer",), "paraphrased_prompt": ("answer",)}

    def value(self, record: RecordRows) -> float:
        return float(np.mean(self._each(record)))

    def _each(self, record: RecordRows) -> list[float]:
        return [self.strength(row) for row in record.of("paraphrased_prompt")]

    def details(self, records: Sequence[RecordRows]) -> dict[str, Any]:
        worst = {"worst": float(np.mean([max(self._each(record)) for record in records]))}
        return {**super().details(records), **worst}
