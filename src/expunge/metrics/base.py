"""The contract of a metric: evidence in, a Score with an interval out. No torch, no files, no model.

Most metrics are one number per record of one split (`RecordMetric`): write `value`, and the mean, the skips
and the interval clustered by entity follow. The others (`Metric`) write `score` themselves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from expunge.errors import ConfigError, Problem, nearest
from expunge.evidence import Evidence, Row, is_forget_side
from expunge.metrics import METRICS
from expunge.registry import Card
from expunge.stats import Clusters, seed_from

__all__ = [
    "METRICS",
    "Metric",
    "ModelEvidence",
    "RecordMetric",
    "RecordRows",
    "Score",
    "Skip",
    "column",
    "nll",
    "nonfinite",
    "one_of",
    "probability",
]

ModelEvidence = Mapping[str, Evidence]
"""Split name → evidence of one model."""


class Skip(Exception):
    """This record has no value; the message is the reason that is counted."""


@dataclass(frozen=True)
class Score:
    """A metric's value on one split. `value` is None iff it is not computable; `reason` then says why.

    `better`: "lower", "higher", or "target" with the target in `details["target"]` (None: nothing to compare
    with) and the distance to it in `details["distance"]`. `per_record` maps record id → value; `skipped` maps
    reason → count.
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
    """The rows of one record, as a RecordMetric sees them; `original`, `oracle`: their gold rows of it."""

    evidence: Evidence
    record_id: str
    gold: Row
    original: Row | None = None
    oracle: Row | None = None

    def of(self, kind: str) -> Sequence[Row]:
        """Rows of one kind of variant; raises Skip when the record has none."""
        rows = self.evidence.of(kind).get(self.record_id)
        if not rows:
            raise Skip(f"no_{kind}")
        return rows


class _FromCard:
    """A class attribute whose one source is the card in the `register` decorator."""

    def __init__(self, key: str, default: str):
        self.key = key
        self.default = default

    def __get__(self, instance: object, owner: type) -> str:
        card = getattr(owner, "card", None)
        return card.fields.get(self.key, self.default) if card else self.default


class Metric(ABC):
    """A pure function of evidence. Its constructor arguments are stored unchanged in `settings`.

    The card gives `facet` (forgetting, utility, privacy, robustness), `unit`, and `better` as
    "forget side/keep side" ("lower/higher"; "-": says nothing on that side; one word: the same on both).
    It also says when an audit measures it: `scope`: "everywhere" (every split that has what it reads),
    "forget", or "asked" (only where a benchmark or a bar names it); `profile`: the lowest that does (quick
    where it says nothing); `needs`: "holdout", "oracle", "reference".
    Class attributes: `range`; `reads`: which fields of which kinds of variant it uses, {kind: fields};
    `columns`: what annotators must have added to the gold rows.
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    facet = _FromCard("facet", "forgetting")
    unit = _FromCard("unit", "")
    direction = _FromCard("better", "lower/higher")
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"gold": ("logprobs",)}
    columns: ClassVar[tuple[str, ...]] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def better(self, split: str) -> str:
        """Which way is better on this split: "lower", "higher" or "target"."""
        forget, _, keep = self.direction.partition("/")
        keep = keep or forget
        here, there = (forget, keep) if is_forget_side(split) else (keep, forget)
        return there if here == "-" else here

    def applies(self, split: str) -> bool:
        """Whether the metric says anything on this side of the scope."""
        forget, _, keep = self.direction.partition("/")
        return (forget if is_forget_side(split) else keep) != "-"

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
            self.name,
            split,
            None,
            better=self.better(split),
            unit=self.unit,
            settings=self.settings,
            reason=reason,
            **more,
        )


def nonfinite(rows: Sequence[Row], fields: Iterable[str] = ()) -> bool:
    """NaN or +inf anywhere makes the whole score not computable; −inf is a legal log-probability of 0."""
    if not rows:
        return False
    logprobs = np.concatenate([row.logprobs for row in rows])
    moments = np.concatenate([moment for row in rows for moment in (row.vocab_mean, row.vocab_std)])
    if "kl" in fields and any(row.kl is not None and np.isnan(row.kl).any() for row in rows):
        return True
    return bool(np.isnan(logprobs).any() or np.isposinf(logprobs).any() or not np.isfinite(moments).all())


class RecordMetric(Metric):
    """One number per record; the aggregate is their mean unless `weights` and `finish` say otherwise."""

    @abstractmethod
    def value(self, record: RecordRows) -> float:
        """The record's value; raise Skip("reason") where it has none."""

    def weights(self, record: RecordRows, value: float) -> tuple[float, float]:
        """(numerator, denominator) of the aggregate Σ/Σ; default: the record's value over 1."""
        return value, 1.0

    def finish(self, ratio: Any) -> Any:
        """Applied to Σ/Σ and to its bootstrap draws (perplexity: exp)."""
        return ratio

    def details(self, records: Sequence[RecordRows]) -> dict[str, Any]:
        """What stands beside the value; `records` are those that have one."""
        return {}

    def fallback_target(self, details: Mapping[str, Any]) -> float | None:
        """What a value whose `better` is "target" aims at where there is no oracle."""
        return None

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
        if evidence is None or not (gold := evidence.gold):
            return self.not_computable(split, "empty_split")
        if any(nonfinite(_rows(evidence, kind), fields) for kind, fields in self.reads.items()):
            return self.not_computable(split, "nonfinite_evidence")
        values, terms, skipped = self._ask(evidence, _gold(original, split), _gold(oracle, split))
        if not values:
            reason = "every_record_skipped: " + ", ".join(skipped)
            return self.not_computable(split, reason, skipped=skipped)

        # By record id: neither the order of the rows nor the names of the entities may move a draw.
        ids = sorted(values)
        numerator, denominator = np.array([terms[i] for i in ids], dtype=float).T
        clusters = Clusters(evidence.entities(ids), seed_from(seed, self.name))
        with np.errstate(over="ignore"):
            value = float(self.finish(numerator.sum() / denominator.sum()))
            low, high = clusters.interval(numerator, denominator, self.finish) or (None, None)

        records = [RecordRows(evidence, i, gold[i]) for i in values]
        flags, details = list(clusters.flags), self.details(records)
        if truncated := sum(row.truncated for row in gold.values()):
            flags.append("truncated")
            details["truncated"] = truncated
        if self.better(split) == "target":
            target = self._target(split, original, oracle)
            if target is None:
                flags.append("no_oracle")
                target = self.fallback_target(details)
            details |= {"target": target, "distance": None if target is None else abs(value - target)}
        return Score(
            self.name, split, value, low, high, len(values), self.better(split), self.unit,
            values, skipped, tuple(flags), self.settings, details,
        )  # fmt: skip

    def _target(
        self, split: str, original: ModelEvidence | None, oracle: ModelEvidence | None
    ) -> float | None:
        """The oracle's own value; None without one, or where it is not computable."""
        if oracle is None or split not in oracle:
            return None
        if any(nonfinite(_rows(oracle[split], kind), fields) for kind, fields in self.reads.items()):
            return None
        _, terms, _ = self._ask(oracle[split], _gold(original, split), _gold(oracle, split))
        numerator, denominator = np.array(list(terms.values()) or [(0.0, 0.0)], dtype=float).T
        with np.errstate(over="ignore"):
            return float(self.finish(numerator.sum() / denominator.sum())) if terms else None

    def _ask(
        self, evidence: Evidence, original: Mapping[str, Row], oracle: Mapping[str, Row]
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, int]]:
        """Record id → value, record id → (numerator, denominator), reason → number of records skipped."""
        values: dict[str, float] = {}
        terms: dict[str, tuple[float, float]] = {}
        skipped: dict[str, int] = {}
        for record_id, gold in evidence.gold.items():
            record = RecordRows(evidence, record_id, gold, original.get(record_id), oracle.get(record_id))
            try:
                if gold.num_answer == 0:
                    raise Skip("empty_answer")
                value = float(self.value(record))
                terms[record_id] = self.weights(record, value)
                values[record_id] = value
            except Skip as skip:
                skipped[str(skip)] = skipped.get(str(skip), 0) + 1
        return values, terms, skipped


def _gold(model: ModelEvidence | None, split: str) -> Mapping[str, Row]:
    return model[split].gold if model is not None and split in model else {}


def _rows(evidence: Evidence, kind: str) -> list[Row]:
    return [row for rows in evidence.of(kind).values() for row in rows]


def one_of(metric: str, setting: str, value: str, known: Sequence[str]) -> str:
    """`value`, if it is one of the known ones; else ConfigError with the nearest."""
    if value not in known:
        raise ConfigError(Problem(f"metric {metric!r}", f"{setting} is {value!r}", nearest(value, known)))
    return value


def nll(row: Row) -> float:
    """Mean negative log-likelihood over the answer, end token in; +inf where a token has probability 0."""
    if len(row.logprobs) == 0:
        raise Skip("empty_answer")
    return -float(row.logprobs.astype(np.float64).mean())


def column(row: Row, name: str) -> Any:
    """What an annotator added to the row under this name; Skip where it added nothing."""
    if row.extra.get(name) is None:
        raise Skip(f"no_{name}")
    return row.extra[name]


def probability(row: Row) -> float:
    """Geometric mean token probability exp(−nll)."""
    return math.exp(-nll(row))
