"""When two texts are the same, and when nearly: normalized equality, and the overlap of word triples."""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Match", "near_duplicates", "normalized", "sketch", "words"]

MIN_WORDS = 6
"""Shorter answers ("in Tarn") are shared by unrelated records and say nothing."""

SKETCH = 128
"""Triples kept per text: up to some 130 words the overlap is exact, beyond that it is estimated."""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without blanks: each character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


class Match(NamedTuple):
    """Text `left` of one list resembles text `right` of another, by Jaccard overlap of their word triples."""

    left: int
    right: int
    similarity: float


def normalized(text: str) -> str:
    """Text without differences of case, blanks, Unicode form and closing punctuation.

    >>> normalized("In  Tarn.") == normalized("in tarn")
    True
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(".!?。 ") or plain


def words(text: str) -> list[str]:
    """The words of a text, without differences of case and Unicode form.

    >>> words("Ada Lund's café, 東京")
    ['ada', 'lund', 's', 'café', '東', '京']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def sketch(text: str) -> frozenset[int]:
    """The hashed word triples of a text, the `SKETCH` smallest; empty for a text too short to judge."""
    found = words(text)
    if len(found) < MIN_WORDS:
        return frozenset()
    triples = {zlib.crc32(" ".join(found[i : i + 3]).encode()) for i in range(len(found) - 2)}
    return frozenset(sorted(triples)[:SKETCH])


def near_duplicates(
    left: Sequence[frozenset[int]], right: Sequence[frozenset[int]], threshold: float
) -> Iterator[Match]:
    """Pairs of sketches whose Jaccard overlap reaches the threshold, in order of `left`.

    Two sets that overlap by t share at least t·|A| members, so they must meet among the |A| − ⌈t·|A|⌉ + 1
    rarest of A and of B: only those are indexed (prefix filter, Chaudhuri et al. 2006).
    """
    spread = Counter(item for side in (left, right) for one in side for item in one)

    def rarest(one: frozenset[int]) -> list[int]:
        length = len(one) - math.ceil(threshold * len(one)) + 1 if one else 0
        return sorted(one, key=lambda item: (spread[item], item))[:length]

    index: dict[int, list[int]] = defaultdict(list)
    for j, one in enumerate(right):
        for item in rarest(one):
            index[item].append(j)
    for i, one in enumerate(left):
        for j in sorted({j for item in rarest(one) for j in index.get(item, ())}):
            similarity = _jaccard(one, right[j])
            if similarity >= threshold:
                yield Match(i, j, similarity)


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Jaccard overlap; estimated from the smallest members of the union where a sketch was cut."""
    union = a | b
    if max(len(a), len(b)) < SKETCH:
        return len(a & b) / len(union)
    smallest = sorted(union)[:SKETCH]
    both = a & b
    return sum(item in both for item in smallest) / len(smallest)
