"""Unlearning with control: calibrate α so that the bar holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from expunge.controls.bar import Bar, bar_value, is_met, within_noise
from expunge.controls.base import CONTROLS, Control, Scene
from expunge.controls.search import Curve, Found, search_alpha
from expunge.metrics.base import Score
from expunge.stats import Clusters, seed_from

__all__ = ["UWC", "Calibration", "alpha_interval"]

WIDE = 0.2


@dataclass(frozen=True)
class Calibration:
    """What the calibration found: α* for each τ, every probe, and how sure α* is."""

    found: Mapping[float, Found]
    scores: Mapping[float, Score]  # α → the metric on calibration
    interval: tuple[float, float] | None  # of α* at the run's own τ
    warnings: tuple[str, ...]
    passes: int
    wall: float


@CONTROLS.register(
    "uwc",
    when="after",
    bounds="α, by a bar on any metric",
    guarantee="M(θ(α*)) ≥ τ·M(θ_o) on calibration",
    source="Wang et al. 2025, arXiv 2406.09179",
)
@dataclass(frozen=True)
class UWC(Control):
    """α* = max { α : M_cal(θ(α)) ≥ τ·M_cal(θ_o) } along θ_o → θ_u, by a guarded bisection.

    `taus` are further bars for the τ sweep; they share all probes. Wang et al. 2025 (arXiv 2406.09179).
    """

    grid: int = 8
    tol: float = 1 / 128
    taus: tuple[float, ...] = (0.4, 0.6, 0.8, 0.9, 0.95, 0.99)

    def attach(self, scene: Scene) -> None:
        return None

    def calibrate(
        self, bar: Bar, measure: Callable[[float], Score], entities: Sequence[str], *, seed: int = 0
    ) -> Calibration:
        """`measure(α)` scores θ(α) on calibration; `entities` are those of the bar's per-record scores."""
        began = time.monotonic()
        scores: dict[float, Score] = {0.0: bar.original}

        def probe(alpha: float) -> float | None:
            scores[alpha] = measure(alpha)
            return scores[alpha].value

        assert bar.original.value is not None
        curve = Curve(probe, bar.original.value)
        taus = sorted({bar.keep, *self.taus}, reverse=True)
        found = search_alpha(curve, bar.original.value, taus, bar.better, grid=self.grid, tol=self.tol)
        interval = alpha_interval(scores, bar, entities, seed)
        warnings = list(found[bar.keep].warnings)
        if within_noise(bar.original):
            warnings.append("the original's score on calibration is within its noise")
        if interval and interval[1] - interval[0] > WIDE:
            span = f"[{interval[0]:.2f}, {interval[1]:.2f}]"
            warnings.append(f"calibration is small: with other records α* could lie anywhere in {span}")
        wall = time.monotonic() - began
        return Calibration(found, dict(sorted(scores.items())), interval, tuple(warnings), curve.passes, wall)


def alpha_interval(
    scores: Mapping[float, Score], bar: Bar, entities: Sequence[str], seed: int
) -> tuple[float, float] | None:
    """95 % interval of α*: resample entities, interpolate the curve, find its first crossing of the bar.

    None for a single entity, where a probe lacks a record, and for a metric that is no mean over records.
    """
    alphas = sorted(a for a, s in scores.items() if s.value is not None)
    records = list(bar.original.per_record)
    complete = [a for a in alphas if all(r in scores[a].per_record for r in records)]
    if len(complete) < 2 or len(set(entities)) < 2 or complete[-1] != 1.0:
        return None
    values = np.array([[scores[a].per_record[r] for r in records] for a in complete])
    if not np.allclose(values.mean(1), [scores[a].value for a in complete], rtol=1e-6):  # type: ignore[arg-type]
        return None
    clusters = Clusters(entities, seed_from(seed, "alpha"))
    weights = clusters.weights()
    draws = (weights @ values.T) / weights.sum(1, keepdims=True)
    crossings = np.array([_crossing(complete, row, bar) for row in draws])
    low, high = clusters.ends(crossings)
    return (low, high)


def _crossing(alphas: Sequence[float], values: np.ndarray, bar: Bar) -> float:
    if bar.better == "higher" and values[0] <= 0:
        return 1.0
    limit = bar_value(float(values[0]), bar.keep, bar.better)
    for i in range(1, len(alphas)):
        if not is_met(float(values[i]), float(values[0]), bar.keep, bar.better):
            step = values[i] - values[i - 1]
            share = (limit - values[i - 1]) / step if step else 0.0
            return float(alphas[i - 1] + share * (alphas[i] - alphas[i - 1]))
    return 1.0
