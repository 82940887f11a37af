"""Intervals clustered by entity, and the few statistics every metric shares. numpy and scipy only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "DRAWS",
    "FEW_CLUSTERS",
    "Clusters",
    "Interval",
    "auc",
    "auc_draws",
    "auc_interval",
    "expanded_tail",
    "harmonic_mean",
    "percentile_interval",
    "seed_from",
    "tpr_at_fpr",
]

DRAWS = 1000
FEW_CLUSTERS = 40


class Interval(NamedTuple):
    low: float
    high: float


def seed_from(*parts: object) -> int:
    """A seed that depends on these parts and nothing else.

    >>> seed_from(0, "npo") == seed_from(0, "npo") != seed_from(1, "npo")
    True
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def percentile_interval(draws: np.ndarray, level: float = 0.95, clusters: float = math.inf) -> Interval:
    """The central `level` of bootstrap draws; draws that are not a number are left out.

    `clusters`: the number of equal-sized entities that were resampled (`Clusters.effective`). Percentiles of
    few entities are too narrow: they ignore that the spread was estimated (t instead of z) and that a
    resample of n varies by (n−1)/n of the variance. Reading further out in the same draws makes up for both
    and never leaves the range of the metric: α′/2 = Φ(−t_{α/2, n−1} √(n/(n−1))).
    Source: Hesterberg 2015 (arXiv 1411.5279), the expanded percentile interval.
    """
    draws = draws[~np.isnan(draws)]
    if draws.size == 0:
        return Interval(float("nan"), float("nan"))
    # Between a finite and an infinite draw there is nothing to interpolate.
    tail = expanded_tail((1 - level) / 2, clusters)
    ends = [tail, 1 - tail]
    interpolate = np.isfinite(draws).all()
    low, high = np.quantile(draws, ends) if interpolate else np.quantile(draws, ends, method="nearest")
    return Interval(float(low), float(high))


def expanded_tail(tail: float, clusters: float) -> float:
    """The share of draws to leave out at each end, so that `tail` of all intervals miss on each side.

    >>> [round(expanded_tail(0.025, n), 4) for n in (6, 10, 40, math.inf)]
    [0.0024, 0.0086, 0.0203, 0.025]
    """
    if math.isinf(clusters):
        return tail
    freedom = max(clusters - 1, 0.5)
    from scipy.special import ndtr, stdtrit  # heavy: not before it is needed

    return float(ndtr(stdtrit(freedom, tail) * math.sqrt(1 + 1 / freedom)))


class Clusters:
    """Bootstrap draws of whole entities: with S entities, each draw takes S of them with replacement.

    The same seed and the same entity names give the same draws, so differences between two models
    asked for with one `Clusters` are paired (Miller 2024, arXiv 2411.00640).
    """

    def __init__(self, entities: Sequence[Hashable], seed: int, draws: int = DRAWS):
        names = list(dict.fromkeys(entities))
        position = {name: i for i, name in enumerate(names)}
        self.index = np.array([position[name] for name in entities], dtype=np.int64)
        self.count = len(names)
        self.draws = draws
        self._seed = seed

    @property
    def flags(self) -> tuple[str, ...]:
        if self.count == 1:
            return ("one_cluster",)
        return ("few_clusters",) if self.count < FEW_CLUSTERS else ()

    @property
    def effective(self) -> float:
        """(Σ m)² / Σ m² with m records in each entity: how many entities of equal size tell as much.

        >>> Clusters(["a", "a", "b", "b"], 0).effective, Clusters(["a", "b", "b", "b"], 0).effective
        (2.0, 1.6)
        """
        sizes = _sizes(self)
        return float(sizes.sum() ** 2 / (sizes**2).sum())

    def ends(self, draws: np.ndarray) -> Interval:
        """The 95 % interval of draws made with these entities, corrected for their number."""
        return percentile_interval(draws, clusters=self.effective)

    def interval(
        self,
        numerator: np.ndarray,
        denominator: np.ndarray | None = None,
        finish: Callable[[Any], Any] = lambda ratio: ratio,
    ) -> Interval | None:
        """The 95 % interval of finish(Σ numerator / Σ denominator); None with a single entity."""
        return None if self.count == 1 else self.ends(finish(self.ratio(numerator, denominator)))

    def counts(self) -> np.ndarray:
        """How often each entity is drawn, [draws, entities]."""
        rng = np.random.default_rng(self._seed)
        picks = rng.integers(0, self.count, size=(self.draws, self.count))
        cells = (np.arange(self.draws)[:, None] * self.count + picks).ravel()
        return (
            np.bincount(cells, minlength=self.draws * self.count)
            .reshape(self.draws, self.count)
            .astype(float)
        )

    def weights(self) -> np.ndarray:
        """How often each record is drawn, [draws, records]."""
        return self.counts()[:, self.index]

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sum over the records of each entity: [records, ...] → [entities, ...]."""
        order = np.argsort(self.index, kind="stable")
        starts = np.searchsorted(self.index[order], np.arange(self.count))
        return np.add.reduceat(np.asarray(values, float)[order], starts, axis=0)

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray | None = None) -> np.ndarray:
        """Draws of Σ numerator / Σ denominator (denominator 1: the mean), [draws].

        A draw that holds an infinite numerator is infinite; one whose denominator is 0 is not a number.
        """
        numerator = np.asarray(numerator, float)
        denominator = np.ones(len(numerator)) if denominator is None else np.asarray(denominator, float)
        counts = self.counts()
        infinite = np.isinf(numerator)
        top = counts @ self.totals(np.where(infinite, 0.0, numerator))
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = top / (counts @ self.totals(denominator))
        for sign in (-np.inf, np.inf):
            hit = numerator == sign
            if hit.any():
                draws[counts @ self.totals(hit) > 0] = sign
        return draws


def auc(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """P(member > non-member) + ½ P(equal); never folded at ½.

    >>> round(auc(np.array([3, 1, 2]), np.array([2, 0, 1])), 6)
    0.777778
    """
    ranked = np.sort(np.asarray(nonmembers, float))
    below = np.searchsorted(ranked, members, side="left")
    below_or_equal = np.searchsorted(ranked, members, side="right")
    return float((below + below_or_equal).mean() / (2 * len(ranked)))


def tpr_at_fpr(members: np.ndarray, nonmembers: np.ndarray, fpr: float) -> float:
    """Largest share of members above a threshold that at most a share `fpr` of the non-members exceeds.

    No interpolation; with fewer than 1/fpr non-members it is the rate at zero false positives
    (Carlini et al. 2022, arXiv 2112.03570).
    """
    descending = np.sort(np.asarray(nonmembers, float))[::-1]
    allowed = int(fpr * len(descending) + 1e-6)
    if allowed >= len(descending):
        return 1.0
    return float((np.asarray(members, float) > descending[allowed]).mean())


def auc_draws(
    members: np.ndarray, nonmembers: np.ndarray, member_clusters: Clusters, nonmember_clusters: Clusters
) -> np.ndarray:
    """Draws of the AUC when each side is resampled by entity on its own, [draws]."""
    members, nonmembers = np.asarray(members, float)[:, None], np.asarray(nonmembers, float)[None, :]
    wins = 0.5 * ((members > nonmembers) + (members >= nonmembers).astype(float))
    by_entity = nonmember_clusters.totals(member_clusters.totals(wins).T).T
    drawn_m, drawn_n = member_clusters.counts(), nonmember_clusters.counts()
    pairs = (drawn_m @ _sizes(member_clusters)) * (drawn_n @ _sizes(nonmember_clusters))
    return ((drawn_m @ by_entity) * drawn_n).sum(1) / pairs


def auc_interval(
    members: np.ndarray, nonmembers: np.ndarray, member_clusters: Clusters, nonmember_clusters: Clusters
) -> Interval | None:
    """The 95 % interval of the AUC; corrected for the side with fewer entities; None where that has one."""
    sides = (member_clusters, nonmember_clusters)
    if min(side.count for side in sides) == 1:
        return None
    return min(sides, key=lambda side: side.effective).ends(auc_draws(members, nonmembers, *sides))


def _sizes(clusters: Clusters) -> np.ndarray:
    return np.bincount(clusters.index, minlength=clusters.count).astype(float)


def harmonic_mean(values: Sequence[float]) -> float:
    """n / Σ 1/v; exactly 0 when any value is 0. Raises ValueError on a negative value or an empty list.

    >>> round(harmonic_mean([0.5, 0.25, 1.0]), 6)
    0.428571
    """
    if not values or any(v < 0 for v in values):
        raise ValueError(f"harmonic mean of {list(values)!r}")
    return 0.0 if any(v == 0 for v in values) else len(values) / sum(1 / v for v in values)
