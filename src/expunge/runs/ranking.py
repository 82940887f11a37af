"""Trials, finalists, and what is said of them: winner, ties, Pareto front, how narrow the peak is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean, median
from typing import Any

from expunge.metrics.pareto import pareto_front

__all__ = ["Finalist", "Trial", "choose", "front", "rank", "sensitivity"]

Params = Mapping[str, Any]

PER_SEED = ("seed", "status", "score", "alpha", "bracket", "utility", "passes")


@dataclass(frozen=True)
class Trial:
    """One trial, calibrated and measured. `score` is the forget metric of θ(α*) on the selection split.

    `status`: ok; no_effect (α* = 1, nothing forgotten), did_not_survive (α* = 0), diverged (non-finite: no
    score), refused (the method or a control does not take these settings), failed. Only ok ones can win.
    """

    name: str
    method: str
    number: int
    seed: int
    params: Params
    status: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    alpha: float | None = None
    bracket: tuple[float, float] | None = None
    calibration: float | None = None  # the bar's metric at α*
    utility: float | None = None  # the same on records the control did not see
    forget_original: float | None = None
    forget_uncontrolled: float | None = None
    monotone: bool | None = None
    passes: int = 0
    steps: int = 0
    moved_fraction: float | None = None
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    warnings: Sequence[str] = ()
    settings: Params = field(default_factory=dict)  # all of the method's own, those not searched too

    @classmethod
    def read(cls, data: Params, method: str, number: int, seed: int, params: Params) -> Trial:
        """From what a trial's stage wrote."""
        known = {f.name for f in fields(cls)}
        cost = {key: data["cost"][key] for key in ("tokens", "flops", "seconds")}
        found = {key: value for key, value in data.items() if key in known}
        return cls(f"{method}-{number:03d}", method, number, seed, params, **found, **cost)


@dataclass(frozen=True)
class Finalist:
    """A trial and its repetitions with further seeds, by which alone it is judged: its own was selected."""

    trial: Trial
    again: tuple[Trial, ...]

    @property
    def scored(self) -> list[Trial]:
        return [t for t in self.again if t.score is not None]

    @property
    def mean(self) -> float:
        return fmean(t.score for t in self.scored if t.score is not None)

    @property
    def interval(self) -> tuple[float, float]:
        """Over entities and seeds: the mean interval of a seed, widened to hold every seed's score."""
        scores = [t.score for t in self.scored if t.score is not None]
        lows, highs = (
            [getattr(t, e) for t in self.scored if getattr(t, e) is not None] for e in ("low", "high")
        )
        return min([*scores, *([fmean(lows)] if lows else [])]), max(
            [*scores, *([fmean(highs)] if highs else [])]
        )

    def over(self, name: str) -> float | None:
        """The mean of a column over the seeds."""
        values = [getattr(t, name) for t in self.scored if getattr(t, name) is not None]
        return fmean(values) if values else None

    def as_dict(self) -> dict[str, Any]:
        """`alpha` and `bracket` lists: one per seed, from the full calibration."""
        low, high = self.interval if self.scored else (None, None)
        return {
            "name": self.trial.name, "method": self.trial.method, "params": dict(self.trial.params),
            "forget": self.mean if self.scored else None, "low": low, "high": high,
            "in_search": self.trial.score, "utility": self.over("utility"), "alpha": self.over("alpha"),
            "seconds": self.over("seconds"),
            "seeds": [{key: getattr(t, key) for key in PER_SEED} for t in self.again],
        }  # fmt: skip


def rank(trials: Sequence[Trial], better: str) -> list[Trial]:
    """By what is forgotten at α*; degenerate trials after all others, those without a score last.

    What a trial forgot before it was brought to the bar counts for nothing.
    """
    sign = 1 if better == "lower" else -1

    def order(trial: Trial) -> tuple[int, float, int, str]:
        group = 0 if trial.status == "ok" else 1 if trial.score is not None else 2
        return group, sign * (trial.score or 0.0), trial.number, trial.method

    return sorted(trials, key=order)


def choose(finalists: Sequence[Finalist], better: str) -> tuple[Finalist | None, list[Finalist]]:
    """The finalist with the best mean over its seeds, and those it cannot be told from.

    A tie: the winner's mean lies inside another's interval. One that failed with some seed comes after those
    that did not.
    """
    sign = 1 if better == "lower" else -1
    able = sorted(
        (f for f in finalists if f.scored), key=lambda f: (len(f.again) - len(f.scored), sign * f.mean)
    )
    if not able:
        return None, []
    first = able[0]
    return first, [f for f in able[1:] if f.interval[0] <= first.mean <= f.interval[1]]


def front(
    trials: Sequence[Trial],
    finalists: Mapping[str, Finalist],
    better: str,
    utility: str,
    *,
    cost: bool = False,
) -> list[dict[str, Any]]:
    """The trials that no other beats in forget and utility at once (with `cost`: nor in seconds).

    `finalists` (by trial name) stand there with their means over seeds, the others with their one seed.
    """
    points = [_point(t, finalists.get(t.name)) for t in trials if t.status == "ok"]
    points = [p for p in points if p["utility"] is not None and p["forget"] is not None]
    axes = {"forget": better, "utility": utility, **({"seconds": "lower"} if cost else {})}
    found = pareto_front([[p[axis] for axis in axes] for p in points], list(axes.values())).front
    turned = {axis: 1 if word == "lower" else -1 for axis, word in axes.items()}
    return sorted((points[i] for i in found), key=lambda p: tuple(turned[axis] * p[axis] for axis in axes))


def _point(trial: Trial, finalist: Finalist | None) -> dict[str, Any]:
    several = finalist is not None and bool(finalist.scored)
    mean = finalist.over if several and finalist else lambda name: getattr(trial, name)
    return {
        "name": trial.name, "method": trial.method, "params": dict(trial.params), "forget": mean("score"),
        "utility": mean("utility"), "seconds": mean("seconds"),
        "seeds": len(finalist.scored) if several and finalist else 1,
    }  # fmt: skip


def sensitivity(method: str, trials: Sequence[Trial], better: str) -> dict[str, Any]:
    """How narrow a method's peak is: how many trials come near its best, and at which learning rates.

    Near: inside the interval of the best. A method that needs a narrow learning rate is worse in practice
    than its best trial says.
    """
    own = [t for t in trials if t.method == method]
    sound = [t for t in rank(own, better) if t.status == "ok"]
    scores = [t.score for t in own if t.score is not None]
    near = [t for t in sound if _inside(t.score, sound[0])]
    rates = [t.params["train.lr"] for t in near if "train.lr" in t.params]
    return {
        "method": method, "trials": len(own), "ok": len(sound), "best": sound[0].score if sound else None,
        "median": median(scores) if scores else None, "near_best": len(near),
        "lr": [min(rates), max(rates)] if rates else None,
        "status": {s: sum(t.status == s for t in own) for s in dict.fromkeys(t.status for t in own)},
        "tokens": sum(t.tokens for t in own), "seconds": sum(t.seconds for t in own),
    }  # fmt: skip


def _inside(score: float | None, best: Trial) -> bool:
    low, high = (best.score if end is None else end for end in (best.low, best.high))
    return score is not None and low is not None and high is not None and low <= score <= high
