"""Clustered draws, intervals and the AUC."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.stats import (
    Clusters,
    auc,
    auc_draws,
    harmonic_mean,
    percentile_interval,
    tpr_at_fpr,
)

samples = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12).map(np.array)


def test_bootstrap_resamples_subjects_not_records():
    even = Clusters(["A", "A", "B", "B"], seed=0, draws=4000).ratio([1, 1, 0, 0])
    assert set(even) == {0.0, 0.5, 1.0}
    assert even.std() == pytest.approx(0.353553, abs=0.01)
    uneven = Clusters(["A", "B", "B", "B"], seed=0).ratio([1, 0, 0, 0])
    assert set(uneven) == {0.0, 0.25, 1.0}


def test_draws_depend_on_seed_only():
    first, again, other = (Clusters(list("abcd"), seed).weights() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(first, Clusters(list("wxyz"), 1).weights())
    assert (first.sum(axis=1) == 4).all()


def test_ratio_equals_weighting_every_record():
    rng = np.random.default_rng(0)
    top, bottom = rng.random(30), rng.integers(1, 9, 30).astype(float)
    clusters = Clusters([f"e{i % 7}" for i in range(30)], 3)
    weights = clusters.weights()
    np.testing.assert_allclose(clusters.ratio(top, bottom), (weights @ top) / (weights @ bottom))


def test_infinite_record_makes_only_its_draws_infinite():
    draws = Clusters(["A", "B"], 0).ratio([np.inf, 1.0])
    assert set(draws) == {1.0, np.inf}
    interval = percentile_interval(draws)
    assert interval == (1.0, np.inf)


def test_percentile_interval_leaves_out_what_is_not_a_number():
    low, high = percentile_interval(np.array([np.nan, *range(101)]))
    assert (low, high) == pytest.approx((2.5, 97.5))
    assert np.isnan(percentile_interval(np.array([np.nan]))).all()


def test_few_clusters_are_flagged():
    assert Clusters(["a"], 0).flags == ("one_cluster",)
    assert Clusters(range(39), 0).flags == ("few_clusters",)
    assert Clusters(range(40), 0).flags == ()


@pytest.mark.parametrize("values", [[], [0.5, -0.1]])
def test_harmonic_mean_refuses(values):
    with pytest.raises(ValueError, match="harmonic"):
        harmonic_mean(values)


@given(samples, samples)
def test_auc_equals_the_pairs(members, nonmembers):
    pairs = [(m > n) + 0.5 * (m == n) for m, n in itertools.product(members, nonmembers)]
    assert auc(members, nonmembers) == pytest.approx(np.mean(pairs))
    assert auc(members, nonmembers) + auc(nonmembers, members) == pytest.approx(1)
    assert auc(np.exp(members), np.exp(nonmembers)) == auc(members, nonmembers)


@given(samples, samples, st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_tpr_is_the_best_threshold(members, nonmembers, fpr):
    thresholds = [-np.inf, *members, *nonmembers]
    best = max((members > c).mean() for c in thresholds if (nonmembers > c).mean() <= fpr)
    assert tpr_at_fpr(members, nonmembers, fpr) == best


def test_auc_draws_equal_weighting_every_pair():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.integers(0, 5, 12).astype(float), rng.integers(0, 4, 9).astype(float)
    sides = (
        Clusters([i // 3 for i in range(12)], 1, draws=20),
        Clusters([i % 4 for i in range(9)], 2, draws=20),
    )
    got = auc_draws(members, nonmembers, *sides)
    for d, (wm, wn) in enumerate(zip(sides[0].weights(), sides[1].weights(), strict=True)):
        drawn = np.repeat(members, wm.astype(int)), np.repeat(nonmembers, wn.astype(int))
        assert got[d] == pytest.approx(auc(*drawn))


def test_few_entities_read_further_out_in_the_same_draws():
    draws = np.random.default_rng(0).normal(size=4000)
    wide, plain = percentile_interval(draws, clusters=6), percentile_interval(draws)
    assert wide.low < plain.low < plain.high < wide.high
    # Against the formula: t(0.025, 5) = -2.570582, times sqrt(6/5) = -2.815932, below it Φ = 0.002432.
    assert wide == pytest.approx(np.quantile(draws, [0.002432, 1 - 0.002432]), abs=1e-3)
    assert percentile_interval(draws, clusters=1e9) == pytest.approx(plain, abs=1e-4)


def test_interval_stays_inside_the_range_of_the_draws_and_follows_finish():
    clusters = Clusters(list("aabccc"), 0)
    values = np.array([0, 1, 1, 0, 0, 1.0])
    low, high = clusters.interval(values)
    assert 0 <= low < values.mean() < high <= 1
    assert clusters.interval(values, finish=lambda v: 1 - v) == pytest.approx((1 - high, 1 - low))
    assert Clusters(list("aaaaaa"), 0).interval(values) is None


def test_unequal_entities_count_for_fewer():
    assert Clusters(list("abcd"), 0).effective == 4
    assert Clusters([*"a" * 97, *"bcd"], 0).effective == pytest.approx(100**2 / (97**2 + 3))
