"""A lower bound on ε: how far the model and the oracle can be told apart by what they say of the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.errors import NotComputable
from expunge.stats import seed_from

__all__ = ["EpsilonEstimate", "epsilon_estimate"]


@dataclass(frozen=True)
class EpsilonEstimate:
    """`value`: ε ≥ this with `confidence`; 0: nothing shown. `limit`: what perfect separation would give."""

    value: float
    limit: float
    point: float  # the ratio at the chosen threshold without confidence bounds, on the evaluation half
    delta: float
    confidence: float
    threshold: float
    above: bool  # whether "above the threshold" is the side that gives it
    swapped: bool  # whether the oracle's rate is the larger one
    ours: int  # units (entities) of the evaluation half
    theirs: int


def epsilon_estimate(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    delta: float = 0.0,
    *,
    entities: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> EpsilonEstimate:
    """ε̂ = log((TPR − δ)/FPR), TPR and FPR replaced by their Clopper–Pearson bounds; never below 0.

    If unlearning were (ε, δ)-indistinguishable from the oracle, no rule had P(model) > e^ε P(oracle) + δ.
    The rule is a threshold on the score, either tail, either model in front. It is chosen on one half of the
    entities and judged on the other, so that the choice costs no confidence; each of the two rates is bounded
    at (1 + confidence)/2 one-sided, so that both hold together.

    What it is: a lower bound from this one attack on these records. What it is not: an upper bound, a
    guarantee, or evidence that ε is small. Two things are assumed: the unit is an entity (the mean over its
    records), because records of one entity are dependent; and units are taken for independent draws of a
    model's behavior, while two models trained once each also differ by their seeds. A few entities show
    little: `limit` is the value of a perfect separation. Raises NotComputable below two entities.
    Sources: Jagielski et al. 2020 (arXiv 2006.07709), Nasr et al. 2021 (arXiv 2101.04535).

    >>> apart = epsilon_estimate({f"r{i}": 1.0 for i in range(40)}, {f"r{i}": 0.0 for i in range(40)})
    >>> round(apart.value, 3) == round(apart.limit, 3), round(apart.limit, 3)
    (True, 1.597)
    """
    names, model, oracle = _units(ours, theirs, entities or {})
    if len(names) < 2:
        raise NotComputable(f"{len(names)} entity, two are needed: one to choose the threshold, one to judge")
    order = np.random.default_rng(seed_from(seed, "epsilon")).permutation(len(names))
    choose, judge = order[: len(order) // 2], order[len(order) // 2 :]
    tail = (1 - confidence) / 2
    threshold, above, swapped = _chosen(model[choose], oracle[choose], delta, tail)
    sides = (oracle[judge], model[judge]) if swapped else (model[judge], oracle[judge])
    hits = [int((side > threshold).sum() if above else (side <= threshold).sum()) for side in sides]
    n = len(judge)
    bound = float(_bound(np.array(hits[0]), np.array(hits[1]), n, delta, tail))
    point = _log_ratio(np.array(hits[0] / n), np.array(hits[1] / n), delta)
    limit = float(_bound(np.array(n), np.array(0), n, delta, tail))
    return EpsilonEstimate(
        bound, limit, float(point), delta, confidence, threshold, above, swapped, n, n
    )  # fmt: skip


def _units(
    ours: Mapping[str, float], theirs: Mapping[str, float], entities: Mapping[str, str]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Mean score of each entity under both models, over the records both have."""
    members: dict[str, list[str]] = {}
    for record in sorted(set(ours) & set(theirs)):
        members.setdefault(entities.get(record) or f"record:{record}", []).append(record)
    sides = [np.array([np.mean([m[r] for r in ids]) for ids in members.values()]) for m in (ours, theirs)]
    if not all(np.isfinite(side).all() for side in sides):
        raise NotComputable("a score is not finite")
    return list(members), sides[0], sides[1]


def _chosen(model: np.ndarray, oracle: np.ndarray, delta: float, tail: float) -> tuple[float, bool, bool]:
    """(threshold, above, swapped) with the largest bound on this half; thresholds lie between the values."""
    values = np.unique(np.concatenate([model, oracle]))
    cuts = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
    n = len(model)
    best: tuple[Any, ...] = (-1.0, -np.inf, float(cuts[0]), True, False)
    for swapped, (front, back) in enumerate(((model, oracle), (oracle, model))):
        for above in (True, False):
            rates = [
                ((s > cuts[:, None]) if above else (s <= cuts[:, None])).sum(axis=1) for s in (front, back)
            ]
            bounds = _bound(rates[0], rates[1], n, delta, tail)
            gaps = (rates[0] - rates[1]) / n  # where few entities bound nothing, the widest gap decides
            at = max(range(len(cuts)), key=lambda i: (bounds[i], gaps[i]))
            best = max(best, (float(bounds[at]), float(gaps[at]), float(cuts[at]), above, bool(swapped)))
    return best[2], best[3], best[4]


def _bound(true: np.ndarray, false: np.ndarray, n: int, delta: float, tail: float) -> np.ndarray:
    """max(0, log((TPR_low − δ)/FPR_high)) of hits among n, by Clopper and Pearson's beta quantiles."""
    from scipy.special import betaincinv

    low = np.where(true == 0, 0.0, betaincinv(np.maximum(true, 1), n - true + 1, tail))
    high = np.where(false == n, 1.0, betaincinv(false + 1, np.maximum(n - false, 1), 1 - tail))
    return np.maximum(0.0, _log_ratio(low, high, delta))


def _log_ratio(true: np.ndarray, false: np.ndarray, delta: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(np.maximum(true - delta, 0.0)) - np.log(false)
    return np.where(true <= delta, -np.inf, found)
