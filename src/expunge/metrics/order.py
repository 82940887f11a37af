"""Two interventions in both orders: what is lost whichever comes first, and what the order decides.

Source: Kolbeinsson et al. 2024 (arXiv 2407.06483).
"""

from __future__ import annotations

from collections.abc import Mapping

from expunge.metrics.base import Score
from expunge.metrics.compare import Comparison

__all__ = ["Scores", "order_free_error", "order_sensitivity"]

Scores = Mapping[tuple[str, str], Score]
"""(first, second) → the score of the model that had the one and then the other."""


def order_free_error(i: str, j: str, scores: Scores) -> Comparison:
    """1 − max(M(i→j), M(j→i)) where higher is better, min where lower is: the better order's error, ↓.

    >>> s = {("a", "b"): Score("m", "report", 0.55), ("b", "a"): Score("m", "report", 0.40)}
    >>> round(order_free_error("a", "b", s).value, 6), round(order_sensitivity("a", "b", s).value, 6)
    (0.45, 0.15)
    """
    both = _both(i, j, scores)
    if isinstance(both, str):
        return Comparison(None, reason=both)
    lower = scores[i, j].better == "lower"
    return Comparison(min(both) if lower else 1 - max(both), n=_records(i, j, scores))


def order_sensitivity(i: str, j: str, scores: Scores) -> Comparison:
    """|M(i→j) − M(j→i)|, ↓; `signed` is M(i→j) − M(j→i)."""
    both = _both(i, j, scores)
    if isinstance(both, str):
        return Comparison(None, reason=both)
    signed = both[0] - both[1]
    return Comparison(abs(signed), signed=signed, n=_records(i, j, scores))


def _both(i: str, j: str, scores: Scores) -> tuple[float, float] | str:
    """The two values, or why there are none to compare."""
    if i == j:
        return "one_intervention: it has no second order"
    found = []
    for pair in ((i, j), (j, i)):
        score = scores.get(pair)
        if score is None:
            return f"not_measured: {' → '.join(pair)}"
        if score.value is None:
            return f"not_computable: {' → '.join(pair)}: {score.reason}"
        if score.better not in ("lower", "higher"):
            return f"no_direction: {score.metric} on {score.split} is neither higher nor lower for the better"
        if not 0 <= score.value <= 1:
            return f"no_share: {score.metric} is {score.value:.4g}, outside [0, 1]"
        found.append(score.value)
    return found[0], found[1]


def _records(i: str, j: str, scores: Scores) -> int:
    return min(scores[i, j].n, scores[j, i].n)
