"""The search for α*: the largest α connected to the original at which the bar still holds.

    α*(τ) = max { α : M_cal(θ(α)) ≥ τ · M_cal(θ_o) }

End points first, a coarse grid as guard against non-monotone curves, then bisection; every value is kept by α
and serves all τ. Pure: it sees a function of α, never a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from expunge.controls.bar import is_met
from expunge.errors import ConfigError, NotComputable, Problem

__all__ = ["Curve", "Found", "search_alpha"]


class Curve:
    """M(α), measured at most once per α. `value(0)` is the original's, taken from stored evidence."""

    def __init__(self, measure: Callable[[float], float | None], original: float):
        self._measure = measure
        self.values: dict[float, float | None] = {0.0: original}
        self.order: list[float] = []

    def __call__(self, alpha: float) -> float | None:
        if alpha not in self.values:
            self.values[alpha] = self._measure(alpha)
            self.order.append(alpha)
        return self.values[alpha]

    @property
    def passes(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class Found:
    """α* for one τ. `bracket`: feasible and infeasible end of the last cell, (1, 1) when it holds at 1."""

    tau: float
    alpha: float
    bracket: tuple[float, float]
    monotone: bool = True
    max_feasible_seen: float = 0.0
    warnings: tuple[str, ...] = field(default=())


def search_alpha(
    curve: Curve,
    original: float,
    taus: Sequence[float],
    better: str = "higher",
    *,
    grid: int = 8,
    tol: float = 1 / 128,
) -> dict[float, Found]:
    """α* for each τ. `grid` ≤ 1: no scan (and no guard). Raises NotComputable when the original scores 0."""
    if better == "higher" and original <= 0:
        raise NotComputable("the original scores 0 on calibration: every model meets such a bar")
    problems = [Problem("bar.keep", f"{tau} is outside (0, 1]") for tau in taus if not 0 < tau <= 1]
    if tol <= 0:
        problems.append(Problem("control.uwc.tol", f"{tol} must be above 0"))
    if problems:
        raise ConfigError(problems)
    last = curve(1.0)
    open_ = [tau for tau in taus if not is_met(last, original, tau, better)]
    if open_ and grid > 1:
        for g in range(1, grid):
            curve(g / grid)
    found = {}
    for tau in taus:
        good = lambda alpha, tau=tau: is_met(curve(alpha), original, tau, better)  # noqa: E731
        if tau not in open_:
            found[tau] = _at_one(curve.values, tau, good)
        else:
            found[tau] = _inside(curve, tau, good, grid if grid > 1 else 1, tol)
    return found


def _at_one(values: Mapping[float, float | None], tau: float, good: Callable[[float], bool]) -> Found:
    dips = [a for a in values if not good(a)]
    warnings = ("the curve dips below the bar between 0 and 1",) if dips else ()
    return Found(tau, 1.0, (1.0, 1.0), not dips, 1.0, warnings)


def _inside(curve: Curve, tau: float, good: Callable[[float], bool], grid: int, tol: float) -> Found:
    cells = [g / grid for g in range(grid + 1)]
    edge = next(g for g in range(1, grid + 1) if not good(cells[g])) - 1
    beyond = [a for a in cells[edge + 2 :] if good(a)]
    low, high = cells[edge], cells[edge + 1]
    while high - low > tol:
        middle = (low + high) / 2
        if good(middle):
            low = middle
        else:
            high = middle
    if not beyond:
        return Found(tau, low, (low, high), True, low)
    text = f"the curve is not monotone: beyond an infeasible stretch α = {beyond[-1]:g} meets the bar again"
    return Found(tau, low, (low, high), False, beyond[-1], (text,))
