"""The permutation over entities against enumeration and scipy; the bound on ε against beta quantiles."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from expunge.audit.epsilon import epsilon_estimate
from expunge.audit.permutation import holm, ks_permutation, permutation_test
from expunge.errors import NotComputable


def table(values) -> dict[str, float]:
    return {f"r{i:04}": float(v) for i, v in enumerate(values)}


def grouped(count: int, each: int) -> dict[str, str]:
    return {f"r{i:04}": f"e{i // each}" for i in range(count)}


# Permutation ---------------------------------------------------------------------------------------------


def test_sign_flips_of_entities_equal_the_enumeration():
    rng = np.random.default_rng(0)
    ours, theirs, who = rng.random(15), rng.random(15), grouped(15, 3)
    found = permutation_test(table(ours), table(theirs), who)
    sums = (ours - theirs).reshape(5, 3).sum(axis=1)
    every = np.array([np.dot(signs, sums) for signs in itertools.product([1, -1], repeat=5)]) / 15
    assert found.statistic == pytest.approx((ours - theirs).mean())
    assert found.above == np.mean(every >= found.statistic - 1e-12)
    assert found.below == np.mean(every <= found.statistic + 1e-12)
    assert found.p == np.mean(np.abs(every) >= abs(found.statistic) - 1e-12)
    assert (found.entities, found.records, found.exact) == (5, 15, True)


def test_records_of_an_entity_flip_together():
    """Twelve records, two people: as many records as one likes say nothing with two people."""
    ours, theirs = table([0.9] * 12), table([0.1] * 12)
    assert permutation_test(ours, theirs, grouped(12, 6)).above == 0.25
    assert permutation_test(ours, theirs, {}).above == 1 / 2**12


def test_direction_and_smallest_p():
    more = permutation_test(table([0.9] * 5), table([0.1] * 5), {})
    assert (more.above, more.below, more.p) == (1 / 32, 1.0, 2 / 32)
    assert (more.smallest, more.smallest_two_sided) == (1 / 32, 2 / 32)
    assert more.can_reject(0.05)
    assert not more.can_reject(0.05, two_sided=True)
    assert more.rejects(0.05, "above")
    assert not more.rejects(0.05, "below")
    less = permutation_test(table([0.1] * 5), table([0.9] * 5), {})
    assert (less.above, less.below) == (1.0, 1 / 32)


def test_many_entities_are_drawn_as_a_function_of_the_seed():
    rng = np.random.default_rng(1)
    ours, theirs = table(rng.random(40)), table(rng.random(40))
    first, again, other = (permutation_test(ours, theirs, {}, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert not first.exact
    assert first.smallest == 1 / 10_001
    far = permutation_test(table(np.ones(40)), table(np.zeros(40)), {})
    assert far.above == 1 / 10_001


def test_drawn_signs_agree_with_scipy():
    rng = np.random.default_rng(2)
    difference = rng.normal(0.25, 1, 30)
    found = permutation_test(table(difference), table(np.zeros(30)), {})
    expected = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=9999, rng=0
    )
    assert found.p == pytest.approx(expected.pvalue, abs=0.015)


@pytest.mark.parametrize("test", [permutation_test, ks_permutation])
def test_the_level_is_kept_under_the_null(test):
    rng = np.random.default_rng(3)
    rejected = 0
    for seed in range(300):
        effect = np.repeat(rng.normal(size=(2, 12)), 4, axis=1)  # an effect per person and model
        ours, theirs = effect + rng.normal(0, 0.3, (2, 48))
        rejected += test(table(ours), table(theirs), grouped(48, 4), seed).rejects(0.05)
    assert rejected <= 25  # 15 expected, 25 is beyond the 99 % quantile


def test_ks_distance_is_the_usual_one_and_its_permutation_stricter():
    rng = np.random.default_rng(4)
    ours, theirs = np.repeat(rng.normal(0.8, 1, 10), 5), np.repeat(rng.normal(0, 1, 10), 5)
    found = ks_permutation(table(ours), table(theirs), grouped(50, 5))
    plain = stats.ks_2samp(ours, theirs)
    assert found.statistic == pytest.approx(plain.statistic)
    assert found.p > 3 * plain.pvalue
    assert ks_permutation(table([1, 2, 3, 4]), table([3, 4, 5, 6]), {}).statistic == 0.5
    same = ks_permutation(table(ours), table(ours), grouped(50, 5))
    assert (same.statistic, same.p) == (0.0, 1.0)


def test_nothing_shared_or_not_finite_is_not_computable():
    with pytest.raises(NotComputable):
        permutation_test({"a": 1.0}, {"b": 1.0}, {})
    with pytest.raises(NotComputable):
        permutation_test({"a": math.nan}, {"a": 1.0}, {})
    with pytest.raises(NotComputable):
        epsilon_estimate({"a": 1.0}, {"a": 0.0})


def test_holm_by_hand():
    assert holm({}) == {}
    assert holm({"a": 0.01, "b": 0.02, "c": 0.5}) == {"a": 0.03, "b": 0.04, "c": 0.5}


# The bound on ε ------------------------------------------------------------------------------------------


def test_perfect_separation_gives_the_clopper_pearson_limit():
    found = epsilon_estimate(table([0.9] * 60), table([0.1] * 60), delta=0.01)
    interval = [stats.binomtest(k, 30).proportion_ci(0.95, "exact") for k in (30, 0)]
    assert found.value == found.limit == pytest.approx(math.log((interval[0].low - 0.01) / interval[1].high))
    assert (found.ours, found.above, found.swapped) == (30, True, False)


def test_both_tails_and_both_directions_are_looked_at():
    low = epsilon_estimate(table([0.1] * 60), table([0.9] * 60))
    assert low.value == low.limit > 0
    # Half of the oracle's scores are extreme on both sides of the model's: only the middle is the model's.
    assert epsilon_estimate(table([0.5] * 60), table([0.1, 0.9] * 30)).value >= 0


def test_records_of_one_entity_count_once():
    records = epsilon_estimate(table([0.9] * 60), table([0.1] * 60))
    people = epsilon_estimate(table([0.9] * 60), table([0.1] * 60), entities=grouped(60, 6))
    assert (records.ours, people.ours) == (30, 5)
    assert 0 <= people.value < records.value


def test_larger_delta_never_raises_the_bound():
    rng = np.random.default_rng(5)
    ours, theirs = table(rng.normal(2, 1, 200)), table(rng.normal(0, 1, 200))
    values = [epsilon_estimate(ours, theirs, delta).value for delta in (0.0, 0.01, 0.1, 0.5)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.5


@pytest.mark.parametrize("count", [10, 100])
def test_equal_distributions_give_zero_in_95_percent(count):
    rng = np.random.default_rng(6)
    zero = [
        epsilon_estimate(table(rng.normal(size=count)), table(rng.normal(size=count)), seed=s).value == 0
        for s in range(200)
    ]
    assert np.mean(zero) >= 0.95


def test_the_bound_stays_below_a_known_epsilon():
    """Randomized response with ε = 1: the answer is the truth e times as often as not."""
    rng, truth = np.random.default_rng(7), math.e / (1 + math.e)
    values = [
        epsilon_estimate(table(rng.random(400) < truth), table(rng.random(400) > truth), seed=s).value
        for s in range(100)
    ]
    assert np.mean(np.array(values) <= 1) >= 0.95
    assert np.mean(values) > 0.4
