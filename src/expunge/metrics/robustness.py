"""Which metric to trust: does it rank models the same way before and after an attack?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from expunge.errors import NotComputable
from expunge.stats import DRAWS, Interval, percentile_interval, seed_from

__all__ = ["Robustness", "metric_robustness"]


@dataclass(frozen=True)
class Robustness:
    """`pearson` in [−1, 1], higher is better; `slope` and `intercept` of after on before, 1 and 0 at best.

    For an attack that alters knowledge only `pearson` counts. Intervals come from whole clusters.
    """

    pearson: float
    slope: float
    intercept: float
    n: int
    pearson_interval: Interval | None = None
    slope_interval: Interval | None = None


def metric_robustness(
    before: Sequence[float],
    after: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Robustness:
    """Pearson correlation, and least squares of `after` on `before`, over models of one side of the scope.

    `clusters`: the (method, model) of each point, resampled as a whole. Raises NotComputable with fewer than
    three points or where one side does not vary. Source: Wang et al. 2025 (arXiv 2406.09179).

    >>> metric_robustness([0, 0.2, 0.4, 0.6], [0, 0.1, 0.2, 0.3]).slope
    0.5
    """
    x, y = np.asarray(before, float), np.asarray(after, float)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} points before, {len(y)} after")
    if len(x) < 3:
        raise NotComputable(f"{len(x)} points, three are needed")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise NotComputable("a point is not finite")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise NotComputable("the metric is the same for every model")
    pearson, slope, intercept = _fit(x, y)
    names = list(dict.fromkeys(clusters if clusters is not None else range(len(x))))
    if len(names) < 3:
        return Robustness(pearson, slope, intercept, len(x))
    member = [np.flatnonzero([c == name for c in (clusters or range(len(x)))]) for name in names]
    rng = np.random.default_rng(seed_from(seed, "metric robustness"))
    draws = []
    for _ in range(DRAWS):
        chosen = np.concatenate([member[i] for i in rng.integers(0, len(names), len(names))])
        if np.ptp(x[chosen]) > 0 and np.ptp(y[chosen]) > 0:
            draws.append(_fit(x[chosen], y[chosen])[:2])
    found = np.array(draws)
    ends = [percentile_interval(found[:, i], clusters=len(names)) for i in (0, 1)]
    return Robustness(pearson, slope, intercept, len(x), *ends)


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    dx, dy = x - x.mean(), y - y.mean()
    slope = (dx @ dy) / (dx @ dx)
    pearson = (dx @ dy) / np.sqrt((dx @ dx) * (dy @ dy))
    return (
        float(np.clip(round(pearson, 12), -1, 1)),
        round(float(slope), 12),
        float(y.mean() - slope * x.mean()),
    )
