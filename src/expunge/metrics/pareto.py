"""Trade-offs: which results no other beats on every side, and how much they cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.errors import NotComputable

__all__ = ["Front", "hypervolume", "oriented", "pareto_front"]


class Front(NamedTuple):
    """Indices of the points: on the front, dominated by another, and with a coordinate that is missing."""

    front: list[int]
    dominated: list[int]
    incomplete: list[int]


def oriented(points: Sequence[Sequence[float | None]], better: Sequence[str]) -> np.ndarray:
    """Points [N, D] turned so that higher is better in every coordinate; a missing value is NaN.

    `better`: "higher" or "lower" for each coordinate.
    """
    if any(word not in ("higher", "lower") for word in better):
        raise ValueError(f"better is higher or lower, not {list(better)}")
    sign = np.array([1.0 if word == "higher" else -1.0 for word in better])
    rows = [[np.nan if v is None else v for v in point] for point in points]
    return np.array(rows, dtype=float).reshape(len(rows), len(sign)) * sign


def pareto_front(points: Sequence[Sequence[float | None]], better: Sequence[str]) -> Front:
    """a dominates b if it is as good everywhere and better somewhere; equal points both stay.

    >>> pareto_front([(0.9, 0.3), (0.6, 0.7), (0.3, 0.8), (0.5, 0.6)], ["higher", "higher"]).front
    [0, 1, 2]
    """
    values = oriented(points, better)
    whole = ~np.isnan(values).any(1)
    incomplete = np.flatnonzero(~whole).tolist()
    at = np.flatnonzero(whole)
    kept = values[at]
    beats = (kept[:, None] >= kept[None]).all(-1) & (kept[:, None] > kept[None]).any(-1)
    lost = beats.any(0)
    return Front(at[~lost].tolist(), at[lost].tolist(), incomplete)


def hypervolume(
    points: Sequence[Sequence[float | None]], better: Sequence[str], reference: Sequence[float]
) -> float:
    """Volume between the fixed `reference` point and what the points dominate.

    Coordinates are as in `points`; one that is not better than the reference everywhere adds nothing. Raises
    NotComputable where no point is complete.

    >>> found = hypervolume([(0.9, 0.3), (0.6, 0.7), (0.3, 0.8)], ["higher", "higher"], (0, 0))
    >>> round(found, 6)
    0.54
    """
    values = oriented(points, better) - oriented([reference], better)
    values = values[~np.isnan(values).any(1)]
    if not len(values):
        raise NotComputable("no point has all coordinates")
    return _volume(values[(values > 0).all(1)])


def _volume(points: np.ndarray) -> float:
    """Slices along the last coordinate, highest first; each has the volume of the points above it."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    order = points[np.argsort(-points[:, -1], kind="stable")]
    heights = np.append(order[:, -1], 0.0)
    return float(
        sum(
            (heights[i] - heights[i + 1]) * _volume(order[: i + 1, :-1])
            for i in range(len(order))
            if heights[i] > heights[i + 1]
        )
    )
