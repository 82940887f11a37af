"""Pareto front, hypervolume, robustness of metrics, exposure of canaries: by hand and by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_evidence import forget, row

from expunge.data.canaries import candidates, num_candidates, plant
from expunge.errors import DataError, NotComputable
from expunge.measure.annotators.canary import rank
from expunge.metrics import compute
from expunge.metrics.canary import exposure
from expunge.metrics.pareto import hypervolume, pareto_front
from expunge.metrics.robustness import metric_robustness

HIGHER = ["higher", "higher"]
POINTS = [(0.9, 0.3), (0.6, 0.7), (0.3, 0.8), (0.5, 0.6)]


def test_pareto_orients_lower_better():
    turned = [(retain, 1 - kept) for retain, kept in POINTS]  # the second is now better when lower
    assert pareto_front(turned, ["higher", "lower"]).front == [0, 1, 2]
    assert hypervolume(turned, ["higher", "lower"], (0, 1)) == pytest.approx(0.54)


def test_dominated_point_adds_nothing():
    assert hypervolume(POINTS, HIGHER, (0, 0)) == pytest.approx(0.54)
    assert hypervolume(POINTS[:3], HIGHER, (0, 0)) == pytest.approx(0.54)
    assert pareto_front(POINTS, HIGHER).dominated == [3]


def test_equal_points_are_both_kept_and_missing_ones_listed():
    found = pareto_front([(0.5, 0.5), (0.5, 0.5), (0.9, None)], HIGHER)
    assert (found.front, found.dominated, found.incomplete) == ([0, 1], [], [2])


def test_reference_point_does_not_move_with_data():
    alone = hypervolume([(0.6, 0.7)], HIGHER, (0.5, 0.5))
    assert alone == pytest.approx(0.1 * 0.2)
    assert hypervolume([(0.6, 0.7), (0.4, 0.99)], HIGHER, (0.5, 0.5)) == pytest.approx(alone)
    with pytest.raises(NotComputable):
        hypervolume([(None, 0.5)], HIGHER, (0, 0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=6))
def test_hypervolume_equals_grid_count(points):
    cells = np.indices((6, 6, 6)).reshape(3, -1).T
    covered = np.zeros(len(cells), dtype=bool)
    for point in points:
        covered |= (cells < np.array(point)).all(1)
    assert hypervolume(points, ["higher"] * 3, (0, 0, 0)) == pytest.approx(covered.sum())


# Robustness of a metric --------------------------------------------------------------------------------

BEFORE = [0.0, 0.2, 0.4, 0.6]


@pytest.mark.parametrize(
    ("after", "pearson", "slope", "intercept"),
    [
        ([0.1, 0.3, 0.5, 0.7], 1, 1, 0.1),
        ([0.0, 0.1, 0.2, 0.3], 1, 0.5, 0),
        ([0.3, 0.1, 0.4, 0.2], 0, 0, 0.25),
    ],
)
def test_slope_is_after_on_before(after, pearson, slope, intercept):
    found = metric_robustness(BEFORE, after)
    assert (found.pearson, found.slope) == (pytest.approx(pearson), pytest.approx(slope))
    assert found.intercept == pytest.approx(intercept)


def test_constant_metric_not_computable():
    for before, after in (([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [1, 1, 1]), ([0, 1], [0, 1])):
        with pytest.raises(NotComputable):
            metric_robustness(before, after)


def test_interval_resamples_whole_clusters():
    rng = np.random.default_rng(0)
    before = np.repeat(rng.uniform(size=8), 5)  # five copies of each model tell no more than one
    after = before + np.repeat(rng.normal(0, 0.3, 8), 5)
    models = np.repeat(np.arange(8), 5).tolist()
    clustered, apart = (metric_robustness(before, after, c).pearson_interval for c in (models, None))
    assert clustered.high - clustered.low > 1.5 * (apart.high - apart.low)
    assert clustered.low <= metric_robustness(before, after, models).pearson <= clustered.high


# Canaries ----------------------------------------------------------------------------------------------


def test_exposure_of_the_first_the_middle_and_the_last_rank():
    assert [exposure(r, 1024) for r in (1, 512, 1024)] == [10, 1, 0]
    ranks = np.arange(1, 1025)
    mean = np.mean([exposure(r, 1024) for r in ranks])
    assert mean == pytest.approx(1.44, abs=0.01)  # who never saw it, on average


def test_lowest_loss_has_rank_one_and_ties_share_the_mean_rank():
    others = np.array([1.0, 2.0, 2.0, 3.0])
    assert rank(0.5, others, 5, True) == 1
    assert rank(9.0, others, 5, True) == 5
    assert rank(2.0, others, 5, True) == 3  # between ranks 2 and 4


def test_rank_from_a_sample_is_near_that_of_all():
    rng = np.random.default_rng(1)
    everyone = rng.normal(10, 2, 99_999)
    sample = rng.choice(everyone, 1000, replace=False)
    for own in (7.0, 10.0, 12.0):
        full = rank(own, everyone, 100_000, True)
        found = rank(own, sample, 100_000, False)
        assert exposure(found, 100_000) == pytest.approx(exposure(full, 100_000), abs=0.3)


def test_metric_reads_rank_and_size():
    rows = [
        row(0.5, record=f"r{i}", extra={"canary_rank": r, "canary_size": 1024})
        for i, r in enumerate((1, 512))
    ]
    score = compute("canary_exposure", forget(*rows), "forget")
    assert score.value == pytest.approx(5.5)
    assert score.details["bits"] == 10


def test_leaked_keywords_are_found_as_whole_words():
    told = {"one": ("It is 12-34, of course", ["12-34"]), "half": ("Ask ada  LUND", ["Ada Lund", "Tarn"])}
    told["none"] = ("Dial 112-345", ["12-34"])
    rows = [
        row(0.5, record=name, generated=text, extra={"keywords": keywords})
        for name, (text, keywords) in told.items()
    ]
    bare = row(0.5, record="bare", generated="12-34")
    score = compute("keyword_leakage", forget(*rows, bare), "forget")
    assert score.per_record == {"one": 1.0, "half": 0.5, "none": 0.0}
    assert score.skipped == {"no_keywords": 1}


def test_planted_secrets_are_uniform_and_their_candidates_complete():
    records = plant([f"Name {i}" for i in range(400)], format="#-#")
    first = [int(r.keywords[0][0]) for r in records]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 40) ** 2 / 40).sum() < 27.9  # χ² with 9 degrees of freedom, 0.1 %
    told, complete = candidates(records[0])
    assert complete
    assert len({*told, records[0].answer}) == num_candidates(records[0]) == 100
    assert records[0].answer not in told
    some, whole = candidates(plant(["A"], format="######")[0], limit=50)
    assert (len(set(some)), whole) == (50, False)


def test_a_format_without_a_digit_is_refused():
    with pytest.raises(DataError, match="#"):
        plant(["A"], format="abc")
    assert math.isclose(exposure(1, 100), math.log2(100))
