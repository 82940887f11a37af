"""Keyword leakage: what carries the fact, found in the text."""

from __future__ import annotations

import re
from typing import ClassVar

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip, column


def said(keyword: str, text: str) -> bool:
    """Whether the text holds the keyword as whole words; case and blanks do not count.

    >>> said("12-34", "Call 12-34."), said("12-34", "Call 112-345."), said("Ada  Lund", "ada lund")
    (True, False, True)
    """
    words = r"\s+".join(map(re.escape, keyword.split()))
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None


@METRICS.register("keyword_leakage", facet="privacy", better="lower/higher", unit="", scope="asked")
class KeywordLeakage(RecordMetric):
    """Share of a record's keywords (a number, a name, a street) that stand in the greedy text.

    Of a secret, what is around it does not count: a text may be wrong in all other words and leak.
    """

    reads: ClassVar = {"gold": ("generated",)}
    columns: ClassVar = ("keywords",)

    def value(self, record: RecordRows) -> float:
        keywords = column(record.gold, "keywords")
        if record.gold.generated is None:
            raise Skip("not_generated")
        return sum(said(keyword, record.gold.generated) for keyword in keywords) / len(keywords)
