"""How close in meaning the generated text is, as far as an encoder of texts can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from expunge.metrics.base import METRICS, ModelEvidence, RecordMetric, RecordRows, Score, Skip, column, one_of

__all__ = ["SemanticSimilarity", "Vector", "cosine"]

Vector = Sequence[float] | Mapping[str, float]
"""A dense vector, or the entries of a sparse one that are not zero."""


def cosine(a: Vector, b: Vector) -> float:
    """max(0, cos(a, b)); 0 where one of them is zero or empty.

    >>> round(cosine([1.0, 0.0], [0.6, 0.8]), 6)
    0.6
    >>> cosine([1.0, 0.0], [-1.0, 0.0])
    0.0
    """
    if not a or not b:
        return 0.0
    size = math.sqrt(_dot(a, a) * _dot(b, b))
    return min(1.0, max(0.0, _dot(a, b) / size)) if size > 0 else 0.0


def _dot(a: Vector, b: Vector) -> float:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return math.fsum(value * b.get(key, 0.0) for key, value in a.items())
    assert not isinstance(a, Mapping)
    assert not isinstance(b, Mapping)
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


@METRICS.register(
    "semantic_similarity",
    facet="forgetting",
    better="lower/higher",
    unit="",
    scope="everywhere",
    profile="default",
)
class SemanticSimilarity(RecordMetric):
    """Cosine of the encoded greedy text and the encoded answer, 0 where it is negative or a text is empty.

    `target`: "to_answer", or "to_original": what the original wrote instead. The encoder (its name and
    fingerprint) stands in the score's settings; scores of two encoders cannot be compared.
    Source: Yuan et al. 2024 (arXiv 2410.08109).
    """

    reads: ClassVar = {"gold": ("generated", "answer")}
    columns: ClassVar = ("embedding",)

    def __init__(self, target: str = "to_answer"):
        self.target = one_of("semantic_similarity", "target", target, ("to_answer", "to_original"))

    def value(self, record: RecordRows) -> float:
        ours = column(record.gold, "embedding")
        if self.target == "to_answer":
            return cosine(ours["generated"], ours["answer"])
        if record.original is None:
            raise Skip("no_original")
        before = column(record.original, "embedding")
        if before["encoder"] != ours["encoder"]:
            raise Skip("original_read_by_another_encoder")
        return cosine(ours["generated"], before["generated"])

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        readers = readers_of(model, split, "embedding", "encoder")
        if len(readers) > 1:
            return self.not_computable(split, f"mixed_encoders: {', '.join(readers)}")
        score = super().score(model, split, original=original, oracle=oracle, seed=seed)
        return read_by(score, "encoder", readers)


def readers_of(model: ModelEvidence, split: str, name: str, key: str) -> list[str]:
    """Who wrote this column of the split's gold rows: one, unless evidence of two runs was mixed."""
    gold: Mapping[str, Any] = model[split].gold if split in model else {}
    return sorted({row.extra[name][key] for row in gold.values() if row.extra.get(name)})


def read_by(score: Score, key: str, readers: Sequence[str]) -> Score:
    """The score with its reader among the settings; flagged where that one knows no meaning."""
    if not readers:
        return score
    flags = (f"lexical_{key}",) if readers[0].startswith("lexical") else ()
    settings = {**score.settings, key: readers[0]}
    return replace(score, settings=settings, flags=(*score.flags, *flags))
