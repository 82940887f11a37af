"""The bar: a metric on calibration and the share of the original's value that must remain, stated before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.data.records import Record
from expunge.errors import ConfigError, NotComputable, Problem
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Sheet, make_sheet
from expunge.metrics import make_metric
from expunge.metrics.base import Metric, Score
from expunge.subjects.subject import Subject

__all__ = ["Bar", "Probe", "choose_metric", "is_met"]

MIN_STRENGTH = 0.2
"""Extraction strength the original must have for `auto` to take it as the bar's metric."""


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
    """The bar's metric and the original's score. `auto`: extraction strength where the original has some (≥ 0.2 and
    above its interval's half-width), else probability, else perplexity for documents.

    Raises NotComputable when the original's score is not above zero: every model would meet such a bar.
    """
    candidates = ("extraction_strength", "probability", "perplexity") if name == "auto" else (name,)
    reasons = []
    for candidate in candidates:
        metric = make_metric(candidate)
        score = metric.score({"calibration": calibration}, "calibration")
        if score.value is None:
            reasons.append(f"{candidate}: {score.reason}")
        elif metric.better("calibration") == "higher" and score.value <= 0:
            reasons.append(f"{candidate}: the original scores 0 on calibration")
        elif name == "auto" and candidate == "extraction_strength" and _weak(score):
            reasons.append(f"{candidate}: {score.value:.3f} is below {MIN_STRENGTH} or within its noise")
        elif name == "auto" and candidate == "probability" and score.value < 0.05:
            reasons.append(f"{candidate}: {score.value:.3f} is too low to hold")
        else:
            return metric, score
    raise NotComputable("the bar is meaningless: " + "; ".join(reasons))


def _weak(score: Score) -> bool:
    assert score.value is not None
    half = (score.high - score.low) / 2 if score.high is not None and score.low is not None else 0.0
    return score.value < MIN_STRENGTH or score.value <= half


class Probe:
    """Measures the bar's metric on calibration, many times cheaply: encoded once, per-record scores only."""

    def __init__(self, subject: Subject, calibration: Sequence[Record], metric: Metric):
        kinds = tuple(dict.fromkeys(("gold", *metric.reads)))
        self.sheet: Sheet = make_sheet(subject.encoder, calibration, "calibration", kinds)
        self.metric = metric
        self.passes = 0

    def __call__(self, subject: Subject) -> Score:
        self.passes += 1
        evidence: Mapping[str, Evidence] = {"calibration": score_sheet(subject, self.sheet)}
        return self.metric.score(evidence, "calibration")
