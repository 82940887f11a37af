"""How often the intervals hold the truth: 2,000 simulated audits each, with entities of unequal size."""

import numpy as np
import pytest

from expunge.stats import Clusters, auc_interval

pytestmark = pytest.mark.slow

TRIALS = 2000


def sizes(count: int) -> np.ndarray:
    """1 to 8 records in an entity."""
    return 1 + np.arange(count) * 3 % 8


def entities(count: int) -> list[int]:
    return np.repeat(np.arange(count), sizes(count)).tolist()


def scores(rng, who, spread: float = 1.0) -> np.ndarray:
    """Scores in [0, 1], mean ½; records of one entity are alike."""
    at = rng.beta(spread, spread, max(who) + 1)[who]
    return rng.beta(4 * at + 0.05, 4 * (1 - at) + 0.05)


def mean_coverage(count: int) -> float:
    rng, clusters = np.random.default_rng(count), Clusters(entities(count), 1)
    ends = np.array([clusters.interval(scores(rng, clusters.index)) for _ in range(TRIALS)])
    return float(((ends[:, 0] <= 0.5) & (ends[:, 1] >= 0.5)).mean())


def difference_coverage(count: int) -> float:
    """Two models that share what is easy and what is hard; the true difference is 0.1."""
    rng, clusters = np.random.default_rng(count), Clusters(entities(count), 1)
    hits = 0
    for _ in range(TRIALS):
        shared, change = scores(rng, clusters.index), rng.normal(0.1, 0.1, count)[clusters.index]
        ours, theirs = shared + change + rng.normal(0, 0.05, len(shared)), shared
        low, high = clusters.interval(ours - theirs)
        hits += low <= 0.1 <= high
    return hits / TRIALS


def auc_coverage(count: int) -> float:
    rng = np.random.default_rng(count)
    sides = Clusters(entities(count), 1), Clusters(entities(count), 2)
    ends = np.array(
        [auc_interval(*(scores(rng, side.index) for side in sides), *sides) for _ in range(TRIALS)]
    )
    return float(((ends[:, 0] <= 0.5) & (ends[:, 1] >= 0.5)).mean())


@pytest.mark.parametrize("coverage", [mean_coverage, difference_coverage, auc_coverage])
def test_from_forty_entities_on_intervals_cover_92_to_98_percent(coverage):
    assert 0.92 <= coverage(40) <= 0.98


@pytest.mark.parametrize("count", [6, 10, 20])
@pytest.mark.parametrize("coverage", [mean_coverage, difference_coverage, auc_coverage])
def test_with_fewer_the_corrected_interval_covers_90_to_99_percent(coverage, count):
    assert 0.90 <= coverage(count) <= 0.99


def test_records_taken_for_independent_cover_far_too_seldom():
    """What the resampling of whole entities is for."""
    rng, who = np.random.default_rng(0), np.array(entities(40))
    naive = Clusters(range(len(who)), 1)
    ends = np.array([naive.interval(scores(rng, who)) for _ in range(300)])
    assert ((ends[:, 0] <= 0.5) & (ends[:, 1] >= 0.5)).mean() < 0.8
