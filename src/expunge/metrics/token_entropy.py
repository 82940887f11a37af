"""How varied the words of a generated text are: low where a model repeats itself."""

from __future__ import annotations

import math
from collections import Counter
from typing import ClassVar

import numpy as np

from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip

__all__ = ["TokenEntropy", "token_entropy"]


def token_entropy(text: str) -> float:
    """−Σ f log₂ f / log₂ N over the N white-space words of a text, in [0, 1]; 0 where N ≤ 1.

    >>> token_entropy("a b a b")
    0.5
    """
    words = text.split()
    if len(words) <= 1:
        return 0.0
    shares = np.array(list(Counter(words).values())) / len(words)
    return float(min(1.0, max(0.0, -(shares * np.log2(shares)).sum()) / math.log2(len(words))))


@METRICS.register(
    "token_entropy", facet="utility", better="higher/higher", unit="", scope="everywhere", profile="default"
)
class TokenEntropy(RecordMetric):
    """Entropy of the generated text's words over that of as many different words: low is repetitive.

    It measures repetition, not quality. A long text falls below 1 by nature: compare with the original
    on the same prompts. Source: Yuan et al. 2024 (arXiv 2410.08109).
    """

    reads: ClassVar = {"gold": ("generated",)}

    def value(self, record: RecordRows) -> float:
        if record.gold.generated is None:
            raise Skip("not_generated")
        return token_entropy(record.gold.generated)
