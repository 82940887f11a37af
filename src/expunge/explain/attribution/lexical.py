"""Attribution by shared words: the baseline of every other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expunge.data.records import Record
from expunge.explain.base import ATTRIBUTIONS, Attributed, Attribution
from expunge.subjects.subject import Subject

__all__ = ["Lexical"]


@ATTRIBUTIONS.register(
    "lexical", uses="text", scale="cosine: 1 is the same words", cost="no forward", source=""
)
@dataclass(frozen=True, kw_only=True)
class Lexical(Attribution):
    """Records that share rare tokens with the query: cosine of tf-idf, prompt and answer.

    The model is not asked: what its gradients find beyond this is what it learned rather than what is alike.
    """

    def attribute(
        self, subject: Subject, queries: Sequence[Record], records: Sequence[Record], *, seed: int = 0
    ) -> Attributed:
        asked, known = (
            [Counter(subject.encoder.encode(record).ids) for record in some] for some in (queries, records)
        )
        spread = Counter(token for counts in known for token in counts)
        weight = {
            token: math.log((1 + len(known)) / (1 + spread[token])) + 1
            for token in {t for counts in (*asked, *known) for t in counts}
        }
        index = {token: i for i, token in enumerate(weight)}

        def vectors(some: list[Counter[int]]) -> np.ndarray:
            found = np.zeros((len(some), len(index)))
            for row, counts in zip(found, some, strict=True):
                for token, count in counts.items():
                    row[index[token]] = count * weight[token]
            return found / np.linalg.norm(found, axis=1, keepdims=True).clip(min=1e-30)

        scores = vectors(asked) @ vectors(known).T
        return Attributed(tuple(q.id for q in queries), tuple(r.id for r in records), scores)
