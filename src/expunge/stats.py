"""Intervals clustered by entity, and the few statistics every metric shares. numpy and scipy only."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["DRAWS", "Clusters", "Interval", "harmonic_mean", "percentile_interval", "seed_from"]

DRAWS = 1000
FEW_CLUSTERS = 20


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


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> Interval:
    """The central `level` of bootstrap draws; draws that are not a number are left out."""
    draws = draws[~np.isnan(draws)]
    if draws.size == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


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

    def weights(self) -> np.ndarray:
        """How often each record is drawn, [draws, records]."""
        rng = np.random.default_rng(self._seed)
        picks = rng.integers(0, self.count, size=(self.draws, self.count))
        counts = np.zeros((self.draws, self.count))
        np.add.at(counts, (np.arange(self.draws)[:, None], picks), 1.0)
        return counts[:, self.index]

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray | None = None) -> np.ndarray:
        """Draws of Σ numerator / Σ denominator (denominator 1: the mean), [draws]."""
        denominator = np.ones(len(numerator)) if denominator is None else np.asarray(denominator, float)
        weights = self.weights()
        return (weights @ np.asarray(numerator, float)) / (weights @ denominator)


def harmonic_mean(values: Sequence[float]) -> float:
    """n / Σ 1/v; exactly 0 when any value is 0. Raises ValueError on a negative value or an empty list.

    >>> round(harmonic_mean([0.5, 0.25, 1.0]), 6)
    0.428571
    """
    if not values or any(v < 0 for v in values):
        raise ValueError(f"harmonic mean of {list(values)!r}")
    return 0.0 if any(v == 0 for v in values) else len(values) / sum(1 / v for v in values)
