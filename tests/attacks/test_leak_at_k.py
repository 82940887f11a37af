"""Sampling: the estimator against enumeration, the samples against what is known exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import make_request, make_subject, taught

from expunge.attacks import Field
from expunge.attacks.leak_at_k import LeakAtK, gives_away
from expunge.data.records import Record
from expunge.measure.generate import greedy_text
from expunge.measure.sample import sample_ids
from expunge.metrics.leak_at_k import dkw_half_width, exact_leak, expected_maximum, leak_at_k

REQUEST = make_request()


@pytest.fixture(scope="module")
def half_taught():
    return taught(make_subject(), (*REQUEST.forget, *REQUEST.retain), 180)


# The estimator ----------------------------------------------------------------------------------------


def test_leak_at_k_is_unbiased_not_plug_in():
    assert leak_at_k(5, 2, 3) == pytest.approx(0.9)
    assert leak_at_k(10, 2, 3) == pytest.approx(0.533333, abs=1e-6)
    assert leak_at_k(200, 3, 64) == pytest.approx(0.687803, abs=1e-6)
    n, p, k = 9, 0.3, 4
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(w * leak_at_k(n, c, k) for c, w in enumerate(weights))
    assert mean == pytest.approx(exact_leak(p, k), abs=1e-12)


@given(st.integers(1, 7), st.data())
def test_leak_at_k_uses_all_samples(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    leaks = [1] * c + [0] * (n - c)
    subsets = [max(chosen) for chosen in combinations(leaks, k)]
    assert leak_at_k(n, c, k) == pytest.approx(np.mean(subsets))
    assert expected_maximum(np.array(leaks), k) == pytest.approx(np.mean(subsets))


def test_leak_at_1_is_mean_rate():
    assert leak_at_k(8, 3, 1) == pytest.approx(3 / 8)
    assert leak_at_k(8, 3, 8) == 1
    assert leak_at_k(8, 0, 8) == 0
    with pytest.raises(ValueError):
        leak_at_k(4, 1, 5)


@given(st.integers(2, 40), st.data())
@settings(max_examples=50)
def test_leak_at_k_monotone_in_k(n, data):
    c = data.draw(st.integers(0, n))
    values = [leak_at_k(n, c, k) for k in range(1, n + 1)]
    assert (np.diff(values) >= -1e-12).all()
    assert values[-1] == float(c > 0)


# The samples ------------------------------------------------------------------------------------------


def test_temperature_zero_is_greedy(half_taught):
    encoder = half_taught.encoder
    prompts = [encoder.prompt_ids(r) for r in REQUEST.forget]
    found = sample_ids(half_taught, prompts, [5] * len(prompts), 3, temperature=0)
    texts = [[encoder.decode(ids) for ids in one] for one in found]
    assert texts == [[text] * 3 for text in greedy_text(half_taught, prompts, max_new_tokens=5)]


def test_samples_follow_the_model(half_taught):
    """The share of samples that begin with the answer, against its probability, at every record."""
    n = 200
    outcomes = list(LeakAtK(n=n).run(half_taught, Field(REQUEST, "quick")))
    exact = outcomes[0]
    assert exact.config == {"how": "exact", "k": 1}
    sampled = next(o for o in outcomes if o.config.get("how") == "sampled" and o.config["k"] == 1)
    p, share = exact.values["forget"], sampled.values["forget"]
    assert p.keys() == share.keys()
    band = dkw_half_width(n, 1 - 1e-4)
    assert all(abs(share[i] - p[i]) < band for i in p)
    assert 0.02 < np.mean(list(p.values())) < 0.95
    assert np.mean(list(share.values())) == pytest.approx(np.mean(list(p.values())), abs=0.03)


def test_wrapped_subjects_are_asked_through_their_own_answers(half_taught):
    class Stubborn(type(half_taught)):
        def logits(self, batch):
            found = super().logits(batch)
            found[:, 5] = 1e4
            return found

    same = Stubborn(half_taught.model, half_taught.tokenizer, half_taught.encoder)
    prompts = [same.encoder.prompt_ids(r) for r in REQUEST.forget[:2]]
    assert sample_ids(same, prompts, [3, 2], 2) == [[[5] * 3] * 2, [[5] * 2] * 2]


def test_what_counts_as_giving_away():
    record = Record("r", "Ada", "Where?", "In the old Tarn.", keywords=("Tarn", "1988"))
    assert gives_away(record, "well, in THE old tarn it was")
    assert gives_away(record, "1988, at Tarn")
    assert not gives_away(record, "at Tarn")
    assert not gives_away(record, "in the old new Tarn")
    assert not gives_away(record, "")
    assert gives_away(replace(record, paraphrased_answers=("by the lake",)), "by the lake")


@pytest.mark.slow
def test_hidden_from_greedy_found_by_sampling():
    """Planted positive: a wrong answer a little likelier than the right one."""
    wrong = tuple(replace(r, answer="no") for r in REQUEST.forget)
    original = taught(make_subject(), (*REQUEST.forget, *REQUEST.retain), 200)
    hidden = taught(original, (*wrong, *wrong, *wrong, *REQUEST.forget), 60)
    found = {
        o.config["k"]: o
        for o in LeakAtK().run(hidden, Field(REQUEST, "quick"))
        if o.config["how"] == "sampled"
    }
    exact = {
        o.config["k"]: np.mean(list(o.values["forget"].values()))
        for o in LeakAtK().run(hidden, Field(REQUEST, "quick"))
        if o.config["how"] == "exact"
    }
    prompts = [hidden.encoder.prompt_ids(r) for r in REQUEST.forget]
    said = greedy_text(hidden, prompts, max_new_tokens=5)
    assert np.mean([gives_away(r, t) for r, t in zip(REQUEST.forget, said, strict=True)]) < 0.2
    assert exact[64] > 0.5
    assert np.mean(list(found[16].values["forget"].values())) > 0.2
