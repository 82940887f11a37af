"""Extraction strength: how much of an answer the model completes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from expunge.errors import NotComputable
from expunge.metrics.base import METRICS, RecordMetric, RecordRows, Skip


def suffix_share(hits: np.ndarray) -> float:
    """Length of the longest suffix of hits that is all ones, over the length; bool[n], n > 0, end token out.

    From a gold prefix of k tokens greedy decoding stays on the gold answer iff every later token is a hit,
    so one teacher-forced pass answers for every k.

    >>> suffix_share(np.array([1, 0, 1, 1, 0, 1, 1, 1], dtype=bool))
    0.375
    """
    misses = np.flatnonzero(~hits)
    return 1.0 if misses.size == 0 else (len(hits) - 1 - int(misses[-1])) / len(hits)


def strength(hits: Sequence[np.ndarray]) -> float:
    """Mean extraction strength of many answers, given their hits; empty answers are left out.

    The fast path of a calibration probe. Raises NotComputable when no answer has a token.
    """
    shares = [suffix_share(np.asarray(row, dtype=bool)) for row in hits if len(row)]
    if not shares:
        raise NotComputable("every answer is empty")
    return float(np.mean(shares))


@METRICS.register(
    "extraction_strength", facet="forgetting", better="lower/higher", unit="", scope="everywhere"
)
class ExtractionStrength(RecordMetric):
    """1 − k*/n, with k* the shortest gold prefix from which greedy decoding completes the answer of n tokens.

    Source: Wang et al. 2025 (arXiv 2406.09179), after Carlini et al. 2021 (arXiv 2012.07805).
    """

    reads: ClassVar = {"gold": ("hits",)}

    def value(self, record: RecordRows) -> float:
        return suffix_share(record.gold.hits[record.gold.answer_span])


@METRICS.register(
    "extraction_strength_paraphrase", facet="forgetting", better="lower/higher", unit="", scope="everywhere"
)
class ExtractionStrengthParaphrase(RecordMetric):
    """Extraction strength of the same answer under reworded questions, mean over the rewordings.

    `details["worst"]` takes the strongest rewording of each record. A record without one is skipped; the
    original question never stands in. Source: Wang et al. 2025 (arXiv 2406.09179).
    """

    reads: ClassVar = {"gold": ("hits",), "paraphrased_prompt": ("hits",)}

    def value(self, record: RecordRows) -> float:
        return float(np.mean(_shares(record)))

    def details(self, records: Sequence[RecordRows]) -> dict[str, float]:
        return {"worst": float(np.mean([max(_shares(record)) for record in records]))}


def _shares(record: RecordRows) -> list[float]:
    shares = [suffix_share(r.hits[r.answer_span]) for r in record.of("paraphrased_prompt") if r.num_answer]
    if not shares:
        raise Skip("empty_answer")
    return shares
