"""Metrics: evidence in, a score with an interval out. Importing this room loads no metric and no numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge.errors import ConfigError, Problem, nearest
from expunge.registry import Registry

if TYPE_CHECKING:
    from expunge.metrics.base import Metric, ModelEvidence, Score

__all__ = ["METRICS", "compute", "make_metric"]

METRICS: Registry[Metric] = Registry("metric", "expunge.metrics", "METRICS")


def make_metric(name: str, **settings: Any) -> Metric:
    """The metric of this name with these settings; ConfigError on an unknown name or setting."""
    import inspect

    cls = METRICS.get(name)
    known = list(inspect.signature(cls).parameters)
    unknown = [
        Problem(f"metric {name!r}", f"no setting {key!r}", nearest(key, known) if known else "It has none")
        for key in settings
        if key not in known
    ]
    if unknown:
        raise ConfigError(unknown)
    return cls(**settings)


def compute(
    metric: str | Metric,
    model: ModelEvidence,
    split: str,
    original: ModelEvidence | None = None,
    oracle: ModelEvidence | None = None,
    seed: int = 0,
    **settings: Any,
) -> Score:
    """Score `model` on `split`. `model`, `original` and `oracle` map split names to evidence.

    `settings` go to the metric when it is given by name.
    """
    if isinstance(metric, str):
        metric = make_metric(metric, **settings)
    elif settings:
        raise ConfigError(f"metric {metric.name!r} is already built: {sorted(settings)} would be ignored")
    return metric.score(model, split, original=original, oracle=oracle, seed=seed)
