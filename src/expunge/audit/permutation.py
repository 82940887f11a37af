"""Can the model be told from the oracle on the forget set? Permutation over entities.

Scores by record id of the two models on the same records, and the entity of each record: records of one
entity are dependent, so an entity moves as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge.audit.recovery import align
from expunge.errors import NotComputable
from expunge.stats import Clusters, seed_from

__all__ = ["EXACT", "Permuted", "holm", "ks_permutation", "permutation_test"]

EXACT = 16
"""Up to this many entities every one of the 2^n patterns is tried."""

RANDOM = 10_000


@dataclass(frozen=True)
class Permuted:
    """A permutation test; `above`: P(as much more as seen), `below`: as much less, `p`: as far either way.

    `smallest`, `smallest_two_sided`: the least `above` (or `below`) and the least `p` that this many entities
    can give at all; a level below it cannot be reached, whatever the model does.
    """

    statistic: float
    p: float
    above: float
    below: float
    entities: int
    records: int
    exact: bool
    smallest: float
    smallest_two_sided: float

    def can_reject(self, level: float = 0.05, *, two_sided: bool = False) -> bool:
        return (self.smallest_two_sided if two_sided else self.smallest) <= level

    def rejects(
        self, level: float = 0.05, side: Literal["above", "below", "two-sided"] = "two-sided"
    ) -> bool:
        return {"above": self.above, "below": self.below, "two-sided": self.p}[side] <= level


def permutation_test(
    ours: Mapping[str, float], theirs: Mapping[str, float], entities: Mapping[str, str], seed: int = 0
) -> Permuted:
    """Sign flips of whole entities: is the mean difference more than swapping the two models would give?

    Statistic: the mean over shared records of ours − theirs. Under the null the models are exchangeable on
    each entity, so each entity's sum of differences may change its sign. All 2^n patterns up to sixteen
    entities (p = share at least as extreme, the seen one among them), else 10,000 seeded ones and
    p = (1 + #)/(1 + 10,000). Raises NotComputable without a shared record.
    Source: Good 2005, Permutation, Parametric, and Bootstrap Tests of Hypotheses, ch. 3 (matched pairs).

    >>> found = permutation_test(dict(a=0.5, b=0.25, c=0.5), dict(a=0, b=0, c=0), dict(a="A", b="B", c="C"))
    >>> found.above, found.p, found.can_reject(0.05)
    (0.125, 0.25, False)
    """
    ids, (first, second) = align(ours, theirs)
    clusters = _clusters(ids, entities, seed)
    sums = clusters.totals(first - second)
    flips = _signs(clusters.count, seed) @ sums
    return _permuted(float(sums.sum()) / len(ids), flips / len(ids), clusters.count, len(ids))


def ks_permutation(
    ours: Mapping[str, float], theirs: Mapping[str, float], entities: Mapping[str, str], seed: int = 0
) -> Permuted:
    """The Kolmogorov–Smirnov distance between the two models' scores, its p by swapping whole entities.

    The stricter option of forget quality: the plain test takes the records for independent and its p is too
    small. An entity's records of both models change sides together. `below` is 1: D has one direction.
    """
    ids, (first, second) = align(ours, theirs)
    clusters = _clusters(ids, entities, seed)
    points = np.unique(np.concatenate([first, second]))
    step = clusters.totals((first[:, None] <= points) * 1.0 - (second[:, None] <= points) * 1.0)
    distances = np.abs(_signs(clusters.count, seed) @ step).max(axis=1) / len(ids)
    seen = float(np.abs(step.sum(axis=0)).max() / len(ids))
    found = _permuted(seen, distances, clusters.count, len(ids))
    return Permuted(
        seen, found.p, found.p, 1.0, found.entities, found.records, found.exact,
        found.smallest_two_sided, found.smallest_two_sided,
    )  # fmt: skip


def _clusters(ids: list[str], entities: Mapping[str, str], seed: int) -> Clusters:
    return Clusters([entities.get(i) or f"record:{i}" for i in ids], seed)


def _signs(count: int, seed: int) -> np.ndarray:
    """Sign patterns, [patterns, entities]: all of them, or seeded ones without the seen one."""
    if count <= EXACT:
        return 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    rng = np.random.default_rng(seed_from(seed, "permutation"))
    return 1.0 - 2.0 * rng.integers(0, 2, size=(RANDOM, count))


def _permuted(seen: float, found: np.ndarray, entities: int, records: int) -> Permuted:
    """Shares of patterns as extreme as what was seen; sums that differ by a rounding are equal."""
    if not math.isfinite(seen):
        raise NotComputable("a score is not finite")
    exact = entities <= EXACT
    slack = 1e-9 * max(1.0, float(np.abs(found).max()))

    def share(hits: np.ndarray) -> float:
        return float(hits.mean()) if exact else float((1 + hits.sum()) / (1 + len(found)))

    least = 1 / len(found) if exact else 1 / (1 + len(found))
    return Permuted(
        seen,
        share(np.abs(found) >= abs(seen) - slack),
        share(found >= seen - slack),
        share(found <= seen + slack),
        entities,
        records,
        exact,
        least,
        min(1.0, 2 * least) if exact else least,
    )


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: reject those at most the level, and at most that share of audits errs at all.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda n: p[n])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p}
