"""The contract of a metric: evidence in, a Score with an interval out. No torch, no files, no model.

Most metrics are one number per record of one split (`RecordMetric`): write `value`, and the mean, the skips
and the interval clustered by entity follow. The others (`Metric`) write `score` themselves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from expunge.evidence import Evidence, Row, is_forget_side
from expunge.registry import Registry
from expunge.stats import Clusters, percentile_interval, seed_from

__all__ = ["METRICS", "ModelEvidence", "Metric", "RecordMetric", "RecordRows", "Score", "Skip"]

METRICS = Registry("metric", "expunge.metrics", "METRICS")

ModelEvidence = Mapping[str, Evidence]
"""Split name → evidence of one model."""


class Skip(Exception):
    """This record has no value; the message is the reason that is counted."""


@dataclass(frozen=True)
class Score:
    """A metric's value on one split. `value` is None iff it is not computable; `reason` then says why.

    `better`: "lower", "higher", or "target" with the target in `details["target"]`.
    `per_record` maps record id → value; `skipped` maps reason → count.
    """

    metric: str
    split: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    better: str = "higher"
    unit: str = ""
    per_record: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class RecordRows:
    """The rows of one record, as a RecordMetric sees them."""

    evidence: Evidence
    record_id: str
    gold: Row

    def of(self, kind: str) -> Sequence[Row]:
        """Rows of one kind of variant; raises Skip when the record has none."""
        rows = self.evidence.of(kind).get(self.record_id)
        if not rows:
            raise Skip(f"no_{kind}")
        return rows


class Metric(ABC):
    """A pure function of evidence. Hyper-parameters are constructor arguments, stored unchanged in `settings`.

    Class attributes: `facet` (forgetting, utility, privacy, robustness), `unit`, `range`, and `reads`: which
    fields of which kinds of variant it uses, {kind: fields}.
    """

    name: ClassVar[str]
    facet: ClassVar[str] = "forgetting"
    unit: ClassVar[str] = ""
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"gold": ("logprobs",)}

    @property
    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def better(self, split: str) -> str:
        """"lower" on the forget side, "higher" on the keep side, unless a metric says otherwise."""
        return "lower" if is_forget_side(split) else "higher"

    @abstractmethod
    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        """The score of `model` on `split`; `original` and `oracle` for metrics that compare with them."""

    def not_computable(self, split: str, reason: str, **more: Any) -> Score:
        return Score(
            self.name, split, None, better=self.better(split), unit=self.unit, settings=self.settings, reason=reason, **more
        )


def nonfinite(rows: Sequence[Row]) -> bool:
    """NaN or +inf anywhere makes the whole score not computable; −inf is a legal log-probability of 0."""
    return any(
        np.isnan(row.logprobs).any()
        or np.isposinf(row.logprobs).any()
        or np.isnan(row.vocab_mean).any()
        or np.isnan(row.vocab_std).any()
        for row in rows
    )


class RecordMetric(Metric):
    """One number per record; the aggregate is the mean over records unless `aggregate` says otherwise."""

    @abstractmethod
    def value(self, record: RecordRows) -> float:
        """The record's value; raise Skip("reason") where it has none."""

    def weights(self, record: RecordRows) -> tuple[float, float]:
        """(numerator, denominator) of the aggregate Σ/Σ; default: the record's value over 1."""
        return self.value(record), 1.0

    def finish(self, ratio: Any) -> Any:
        """Applied to Σ/Σ and to its bootstrap draws (perplexity: exp)."""
        return ratio

    def details(self, model: ModelEvidence, split: str) -> dict[str, Any]:
        return {}

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        evidence = model.get(split)
        if evidence is None or not evidence.gold:
            return self.not_computable(split, "empty_split")
        if nonfinite([row for kind in self.reads for rows in evidence.of(kind).values() for row in rows]):
            return self.not_computable(split, "nonfinite_evidence")
        values: dict[str, float] = {}
        pairs: list[tuple[float, float]] = []
        skipped: dict[str, int] = {}
        for record_id, gold in evidence.gold.items():
            record = RecordRows(evidence, record_id, gold)
            try:
                if gold.num_answer == 0:
                    raise Skip("empty_answer")
                values[record_id] = float(self.value(record))
                pairs.append(self.weights(record))
            except Skip as skip:
                skipped[str(skip)] = skipped.get(str(skip), 0) + 1
        if not values:
            return self.not_computable(split, "every_record_skipped: " + ", ".join(skipped), skipped=skipped)
        numerator, denominator = np.array(pairs, dtype=float).T
        with np.errstate(over="ignore", invalid="ignore"):
            value = float(self.finish(numerator.sum() / denominator.sum()))
            clusters = Clusters(evidence.entities(values), seed_from(seed, self.name))
            low = high = None
            if clusters.count > 1:
                low, high = percentile_interval(self.finish(clusters.ratio(numerator, denominator)))
        flags = clusters.flags + (("truncated",) if any(r.truncated for r in evidence.gold.values()) else ())
        return Score(
            self.name, split, value, low, high, len(values), self.better(split), self.unit,
            values, skipped, flags, self.settings, self.details(model, split),
        )  # fmt: skip


def nll(row: Row) -> float:
    """Mean negative log-likelihood over the answer, end token in; +inf where a token has probability 0."""
    if len(row.logprobs) == 0:
        raise Skip("empty_answer")
    return -float(row.logprobs.astype(np.float64).mean())


def probability(row: Row) -> float:
    """Geometric mean token probability exp(−nll)."""
    return math.exp(-nll(row))
