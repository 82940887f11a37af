"""The bar: a metric on calibration, and the share of the original's value that must remain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.data.records import Record
from expunge.errors import ConfigError, NotComputable, Problem
from expunge.evidence import Evidence
from expunge.measure.generate import add_generations
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Sheet, make_sheet
from expunge.metrics import make_metric
from expunge.metrics.base import Metric, Score
from expunge.subjects.subject import Subject

__all__ = ["Bar", "Probe", "choose_metric", "is_met", "within_noise"]

MIN_STRENGTH, MIN_PROBABILITY = 0.2, 0.05
"""What the original must score for `auto` to take extraction strength, or probability."""


def is_met(value: float | None, original: float, keep: float, better: str) -> bool:
    """M ≥ τ·M_o (higher is better) or M ≤ M_o/τ, with slack 1e-12·|bar|; a missing value fails.

    >>> is_met(0.57, 0.6, 0.95, "higher"), is_met(0.569, 0.6, 0.95, "higher")
    (True, False)
    """
    if value is None or value != value:
        return False
    limit = bar_value(original, keep, better)
    slack = 1e-12 * abs(limit)
    return value >= limit - slack if better == "higher" else value <= limit + slack


def bar_value(original: float, keep: float, better: str) -> float:
    if not 0 < keep <= 1:
        raise ConfigError(Problem("bar.keep", f"{keep} is outside (0, 1]"))
    return keep * original if better == "higher" else original / keep


@dataclass(frozen=True)
class Bar:
    """`metric` on calibration, `keep` = τ, and the original's score there."""

    metric: Metric
    keep: float
    original: Score

    @property
    def better(self) -> str:
        return self.metric.better("calibration")

    @property
    def value(self) -> float:
        assert self.original.value is not None
        return bar_value(self.original.value, self.keep, self.better)

    def met_by(self, value: float | None) -> bool:
        assert self.original.value is not None
        return is_met(value, self.original.value, self.keep, self.better)


def choose_metric(name: str, calibration: Evidence) -> tuple[Metric, Score]:
    """The bar's metric and the original's score.

    `auto`: extraction strength where the original has some (≥ 0.2 and above its interval's half-width), else
    probability, else perplexity. Raises ConfigError on a metric without a better side on calibration, and
    NotComputable when the original's score is not above zero: every model would meet such a bar, or none.
    """
    candidates = ("extraction_strength", "probability", "perplexity") if name == "auto" else (name,)
    reasons = []
    for candidate in candidates:
        metric = make_metric(candidate)
        if not metric.applies("calibration") or metric.better("calibration") not in ("higher", "lower"):
            what = f"{candidate} is neither higher nor lower for a better model"
            raise ConfigError(Problem("bar.metric", what, "Try auto, extraction_strength or probability"))
        score = metric.score({"calibration": calibration}, "calibration")
        if score.value is None:
            reasons.append(f"{candidate}: {score.reason}")
        elif score.value <= 0:
            reasons.append(f"{candidate}: the original scores 0 on calibration")
        elif candidates[1:] and candidate == "extraction_strength" and _weak(score):
            reasons.append(f"{candidate}: {score.value:.3f} is below {MIN_STRENGTH} or within its noise")
        elif candidates[1:] and candidate == "probability" and score.value < MIN_PROBABILITY:
            reasons.append(f"{candidate}: {score.value:.3f} is below {MIN_PROBABILITY}")
        else:
            return metric, score
    raise NotComputable("the bar is meaningless: " + "; ".join(reasons))


def _weak(score: Score) -> bool:
    assert score.value is not None
    return score.value < MIN_STRENGTH or within_noise(score)


def within_noise(score: Score) -> bool:
    """Whether the score is no larger than the half-width of its own interval."""
    if score.value is None or score.low is None or score.high is None:
        return False
    return score.value <= (score.high - score.low) / 2


class Probe:
    """Measures the bar's metric on calibration, cheaply: encoded once, asked no more than it reads."""

    def __init__(self, subject: Subject, calibration: Sequence[Record], metric: Metric):
        kinds = tuple(dict.fromkeys(("gold", *metric.reads)))
        self.sheet: Sheet = make_sheet(subject.encoder, calibration, "calibration", kinds)
        self.metric = metric
        self.generates = any("generated" in fields for fields in metric.reads.values())
        self.passes = 0

    def __call__(self, subject: Subject) -> Score:
        self.passes += 1
        evidence = score_sheet(subject, self.sheet)
        if self.generates:
            evidence = add_generations(subject, self.sheet, evidence)
        return self.metric.score({"calibration": evidence}, "calibration")
