"""Deep unlearning by hand: the paper's recall over minimal sets and the accuracy on what is outside."""

import pytest

from expunge.metrics.deep_unlearning import deep_unlearning

FACTS = range(10)
SETS = [{0, 1}, {0, 2, 3, 4}]


def test_what_is_all_known_is_not_unlearned():
    score = deep_unlearning(0, set(FACTS), FACTS, SETS)
    assert (score.superficial, score.recall, score.accuracy) == (False, 0.0, 1.0)


def test_the_target_alone_is_a_share_of_the_set_it_is_the_most_of():
    score = deep_unlearning(0, set(FACTS) - {0}, FACTS, SETS)
    assert (score.superficial, score.recall, score.accuracy) == (True, 0.5, 1.0)


def test_the_larger_set_counts_where_more_of_it_is_gone():
    score = deep_unlearning(0, set(FACTS) - {0, 2, 3}, FACTS, SETS)
    assert (score.recall, score.accuracy) == (0.75, 1.0)


def test_facts_outside_are_lost_accuracy():
    score = deep_unlearning(0, set(FACTS) - {0, 1, 8, 9}, FACTS, SETS)
    assert (score.recall, score.accuracy) == (1.0, pytest.approx(6 / 8))


def test_of_two_sets_all_gone_the_one_that_leaves_more_known_counts():
    score = deep_unlearning(0, {5, 6, 7, 8}, range(9), SETS)
    assert (score.recall, score.accuracy) == (1.0, pytest.approx(4 / 5))


def test_nothing_outside_has_no_accuracy():
    assert deep_unlearning(0, set(), range(2), [{0, 1}]).accuracy is None
