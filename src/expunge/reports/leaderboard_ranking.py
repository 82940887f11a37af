"""The order of methods under each bar: ties within noise, what turns with τ, what every seed shares."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from expunge.reports.leaderboard_rows import Board, Entry
from expunge.reports.leaderboard_schema import Measured

__all__ = ["Difference", "Pair", "Place", "Turn", "difference", "pairs", "places", "turns"]


@dataclass(frozen=True)
class Difference:
    """a − b over the seeds that both have; `sign` is 0 where noise could have made it."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        return (self.low > 0) - (self.high < 0)


def difference(a: Mapping[int, Measured], b: Mapping[int, Measured]) -> Difference | None:
    """The mean of the paired differences with its 95 % t-interval; None without a common seed.

    Where seeds show no spread (one seed, or a method without chance), the intervals over entities stand in:
    a difference counts if they do not overlap.

    >>> a = {0: Measured(value=0.30), 1: Measured(value=0.32), 2: Measured(value=0.31)}
    >>> b = {0: Measured(value=0.20), 1: Measured(value=0.21), 2: Measured(value=0.22)}
    >>> found = difference(a, b)
    >>> round(found.mean, 3), round(found.low, 3), found.sign
    (0.1, 0.075, 1)
    """
    seeds = sorted(a.keys() & b.keys())
    sides = [[_value(side[seed]) for seed in seeds] for side in (a, b)]
    each = [x - y for x, y in zip(*sides, strict=True)]
    if not each or not all(map(math.isfinite, each)):
        return None
    mean, n = statistics.fmean(each), len(each)
    if n > 1 and any(max(side) > min(side) for side in sides):
        from scipy.special import stdtrit  # heavy: not before it is needed

        half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(each) / math.sqrt(n)
        return Difference(mean, mean - half, mean + half, n)
    first, second = a[seeds[0]], b[seeds[0]]
    ends = (first.low, first.high, second.low, second.high)
    if any(end is None for end in ends):
        return Difference(mean, -math.inf, math.inf, n)
    low, high, low_b, high_b = (float(end or 0.0) for end in ends)
    return Difference(mean, low - high_b, high - low_b, n)


def _value(measured: Measured) -> float:
    assert measured.value is not None, "only numbers are compared"
    return measured.value


@dataclass(frozen=True)
class Place:
    """Where a method stands under one bar. `rank` is one more than the number of methods surely ahead."""

    entry: Entry
    rank: int | None
    tied: tuple[str, ...]
    mean: float | None
    sd: float | None
    n: int
    note: str = ""


def places(board: Board, tau: float, score: str = "forget") -> list[Place]:
    """Lowest score first. Methods that noise could have put in this order share a rank; α* = 0 ranks last."""
    found = {entry.label: entry.measured(tau, score) for entry in board.entries}
    alive = [e for e in board.entries if found[e.label] and e.survives(tau)]
    result = []
    for entry in board.entries:
        mine = found[entry.label]
        spread = entry.controlled(tau).scores[score]
        if not mine:
            failed = f"{len(entry.failed)} failed" if entry.failed else "not measured"
            result.append(Place(entry, None, (), None, None, 0, failed))
        elif entry not in alive:
            note = "did not survive control"
            result.append(Place(entry, len(alive) + 1, (), spread.mean, spread.sd, spread.n, note))
        else:
            others = {e.label: difference(mine, found[e.label]) for e in alive if e is not entry}
            ahead = sum(d is not None and d.sign > 0 for d in others.values())
            tied = tuple(name for name, d in others.items() if d is None or d.sign == 0)
            result.append(Place(entry, ahead + 1, tied, spread.mean, spread.sd, spread.n))
    return sorted(result, key=lambda p: (p.rank is None, bool(p.note), _or_infinite(p.mean)))


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


@dataclass(frozen=True)
class Turn:
    """Two methods whose order under one bar is the reverse of that under another."""

    first: str  # ahead at `tau`
    second: str  # ahead at `other`
    tau: float
    other: float
    sure: bool  # beyond noise under both bars


def turns(board: Board, score: str = "forget") -> list[Turn]:
    """Every pair whose order turns between two bars; those beyond noise first."""
    found = []
    for a, b in combinations(board.entries, 2):
        by_tau = {tau: difference(a.measured(tau, score), b.measured(tau, score)) for tau in board.taus}
        known = [(tau, d) for tau, d in by_tau.items() if d is not None and d.mean != 0]
        reverse = [
            (x, y, dx.sign * dy.sign < 0)
            for (x, dx), (y, dy) in combinations(known, 2)
            if dx.mean * dy.mean < 0
        ]
        if reverse:
            tau, other, sure = max(reverse, key=lambda r: (r[2], abs(r[0] - r[1])))
            at = by_tau[tau]
            names = (a.label, b.label) if at is not None and at.mean < 0 else (b.label, a.label)
            found.append(Turn(*names, tau, other, sure))
    return sorted(found, key=lambda t: not t.sure)


@dataclass(frozen=True)
class Pair:
    """In how many seeds the first method forgot more than the second."""

    wins: int
    losses: int
    n: int

    @property
    def stable(self) -> bool:
        """Whether two or more seeds all say the same."""
        return self.n > 1 and self.n in (self.wins, self.losses)

    @property
    def text(self) -> str:
        equal = self.n - self.wins - self.losses
        return "–" if not self.n else f"{self.wins}/{self.n}" + (f", {equal} equal" if equal else "")


def pairs(board: Board, tau: float, score: str = "forget") -> dict[tuple[str, str], Pair]:
    """Every ordered pair by its labels: the sign of the difference seed by seed."""
    found = {entry.label: entry.measured(tau, score) for entry in board.entries}
    return {(a, b): _pair(found[a], found[b]) for a in found for b in found if a != b}


def _pair(a: Mapping[int, Measured], b: Mapping[int, Measured]) -> Pair:
    each: Sequence[float] = [_value(a[seed]) - _value(b[seed]) for seed in a.keys() & b.keys()]
    return Pair(sum(d < 0 for d in each), sum(d > 0 for d in each), len(each))
