import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.batching import token_batches
from expunge.data.pairing import Schedule, partner

sizes = st.integers(1, 40)


def epochs(schedule, count):
    steps = schedule.steps_per_epoch
    return [[schedule.step(e * steps + i) for i in range(steps)] for e in range(count)]


@given(rows=sizes, retain=sizes, batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_an_epoch_has_every_row_once_and_as_many_partners(rows, retain, batch, seed):
    schedule = Schedule(range(1, rows + 1), [5] * retain, batch=batch, seed=seed)
    for number, steps in enumerate(epochs(schedule, 2)):
        assert [epoch for epoch, _, _ in steps] == [number] * len(steps)
        assert sorted(i for _, picked, _ in steps for i in picked) == list(range(rows))
        assert all(len(picked) == len(pairs) for _, picked, pairs in steps)
        expected = Counter(partner(seed, number, i, rows, retain) for i in range(rows))
        assert Counter(i for _, _, pairs in steps for i in pairs) == expected


@given(rows=sizes, retain=sizes, seed=st.integers(0, 99))
def test_every_retain_row_is_used_before_one_comes_twice_also_across_epochs(rows, retain, seed):
    drawn = [partner(seed, epoch, i, rows, retain) for epoch in range(3) for i in range(rows)]
    for start in range(0, len(drawn) - retain + 1, retain):
        assert sorted(drawn[start : start + retain]) == list(range(retain))


def test_a_step_is_a_function_of_seed_and_number_alone():
    lengths, retain = [3, 9, 4, 7, 5, 8, 2, 6, 1, 3], [2, 4, 6, 8, 3, 5, 7]
    straight = Schedule(lengths, retain, batch=3, seed=4)
    steps = [straight.step(n) for n in range(12)]
    for number in (11, 0, 7, 7, 3):
        assert Schedule(lengths, retain, batch=3, seed=4).step(number) == steps[number]


def test_the_global_generator_plays_no_part():
    import random

    import numpy as np
    import torch

    drawn = []
    for seed in (0, 1):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        drawn.append([Schedule([4] * 9, [4] * 9, batch=2, seed=0).step(n) for n in range(9)])
    assert drawn[0] == drawn[1]


def test_seeds_and_epochs_differ():
    def order(seed, epoch):
        return [partner(seed, epoch, i, 30, 30) for i in range(30)]

    orders = [order(seed, epoch) for seed, epoch in itertools.product(range(3), range(3))]
    assert len({tuple(o) for o in orders}) == 9


def test_rows_of_a_batch_are_near_in_length():
    lengths = list(range(64))
    schedule = Schedule(lengths, [], batch=8, seed=0)
    assert all(max(rows) - min(rows) == 7 for _, rows, _ in epochs(schedule, 1)[0])


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        Schedule([], [], batch=2, seed=0)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), limit=st.integers(1, 120))
def test_token_batches_hold_every_index_once_within_the_limit(lengths, limit):
    batches = list(token_batches(lengths, limit))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= limit
