"""Two or three models against one another on one metric, with the same drawn entities for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from expunge.errors import NotComputable
from expunge.metrics.base import Score
from expunge.stats import Clusters, seed_from

__all__ = ["Comparison", "oracle_fraction", "oracle_gap", "paired_difference"]


@dataclass(frozen=True)
class Comparison:
    """A comparison of scores; `value` is None iff it is not computable, `reason` then says why.

    `signed` is the difference before its absolute value was taken. An interval exists only where the scores
    are means over the same records.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    signed: float | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""


def paired_difference(a: Score, b: Score, entities: Mapping[str, str], seed: int = 0) -> Comparison:
    """M(a) − M(b) over the records both have, with its paired interval.

    `entities`: record id → entity (`Evidence.entity_of`). Not computable for scores that are no mean over
    records (AUC, perplexity, p-values).
    """
    try:
        values, clusters = _pair([a, b], entities, seed)
    except NotComputable as reason:
        return Comparison(None, reason=str(reason))
    difference = values[0] - values[1]
    value = float(difference.mean())
    low, high = clusters.interval(difference) or (None, None)
    return Comparison(value, low, high, len(difference), value, clusters.flags)


def oracle_gap(
    model: Score, oracle: Score | None, entities: Mapping[str, str] | None = None, seed: int = 0
) -> Comparison:
    """|M(model) − M(oracle)|, 0 = like the oracle; its interval comes from the paired difference."""
    if oracle is None or oracle.value is None or model.value is None:
        return Comparison(None, reason=_why_not(model, oracle))
    signed = model.value - oracle.value
    paired = paired_difference(model, oracle, entities or {}, seed)
    if paired.low is None or paired.high is None:
        return Comparison(abs(signed), n=model.n, signed=signed, flags=("no_interval",))
    ends = sorted((abs(paired.low), abs(paired.high)))
    low = 0.0 if paired.low <= 0 <= paired.high else ends[0]
    return Comparison(abs(signed), low, ends[1], paired.n, signed, paired.flags)


def oracle_fraction(
    original: Score,
    model: Score,
    oracle: Score | None,
    entities: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """(M(original) − M(model)) / (M(original) − M(oracle)): 0 nothing changed, 1 like the oracle, > 1 beyond.

    Not computable (`original_equals_oracle`) where the denominator is within the half-width of its interval.
    """
    if oracle is None or original.value is None or model.value is None or oracle.value is None:
        return Comparison(None, reason=_why_not(original, model, oracle))
    whole = original.value - oracle.value
    change = original.value - model.value
    room = paired_difference(original, oracle, entities or {}, seed)
    half_width = (room.high - room.low) / 2 if room.low is not None and room.high is not None else 0.0
    if whole == 0 or abs(whole) < half_width:
        return Comparison(None, n=model.n, signed=change, reason="original_equals_oracle")
    try:
        values, clusters = _pair([original, model, oracle], entities or {}, seed)
    except NotComputable:
        return Comparison(change / whole, n=model.n, signed=change, flags=("no_interval",))
    low, high = clusters.interval(values[0] - values[1], values[0] - values[2]) or (None, None)
    return Comparison(change / whole, low, high, values.shape[1], change, clusters.flags)


def _pair(scores: list[Score], entities: Mapping[str, str], seed: int) -> tuple[np.ndarray, Clusters]:
    """Per-record values of the records that all scores have, [scores, records], and their clusters."""
    for score in scores:
        if score.value is None:
            raise NotComputable(score.reason)
        if not score.per_record:
            raise NotComputable("no_per_record_values")
        mean = float(np.mean(list(score.per_record.values())))
        if not math.isclose(mean, score.value, rel_tol=1e-9, abs_tol=1e-12):
            raise NotComputable("not_a_mean_over_records")
    shared = set.intersection(*(set(score.per_record) for score in scores))
    if not shared:
        raise NotComputable("no_shared_records")
    ids = sorted(shared)
    values = np.array([[score.per_record[i] for i in ids] for score in scores])
    if not np.isfinite(values).all():
        raise NotComputable("infinite_values")
    clusters = Clusters([entities.get(i) or f"record:{i}" for i in ids], seed_from(seed, scores[0].metric))
    return values, clusters


def _why_not(*scores: Score | None) -> str:
    return next((s.reason for s in scores if s is not None and s.value is None), "no_oracle")
