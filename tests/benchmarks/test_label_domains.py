"""The four relations of label domains on a small classifier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from expunge.benchmarks.label_domains import METHODS, RELATIONS, World, compare, make_case, score, train
from expunge.metrics.mean_gap import mean_gap, share_outside

SMALL = World(superclasses=3, classes=2, points=20, hidden=48, epochs=25)


@pytest.fixture(scope="module")
def found():
    return {(r.relation, r.method): r for r in compare(world=SMALL)}


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_parts_are_what_they_are_called(relation):
    case = make_case(relation, SMALL)
    parts = {name: len(points.y) for name, points in case.parts.items()}
    one, whole, all_points = 20, 40, 120
    size = whole if RELATIONS[relation].target == "superclass" else one
    affected = whole - one if relation == "model mismatch" else 0
    assert parts == {
        "target data": size, "listed forget data": one, "hidden forget data": size - one,
        "affected retain data": affected, "retain data": all_points - size,
    }  # fmt: skip
    assert len(case.remaining.y) == all_points - one
    labels = SMALL.superclasses * (SMALL.classes if RELATIONS[relation].model == "class" else 1)
    assert set(case.test.y.tolist()) == set(range(labels))
    if affected:
        assert set(case.test.y[(case.test.cls == 1)].tolist()) == set(
            case.test.y[case.test.cls == 0].tolist()
        )


def test_the_points_are_the_same_under_every_relation():
    cases = [make_case(relation, SMALL) for relation in RELATIONS]
    assert all(torch.equal(cases[0].train.x, case.train.x) for case in cases)


def test_the_original_knows_all_and_retraining_is_the_zero(found):
    for relation in RELATIONS:
        assert found[relation, "original"].four["UA"] < 0.1
        assert found[relation, "retrain"].gap == 0
        assert found[relation, "retrain"].four["RA"] > 0.95


def test_retraining_still_knows_a_class_whose_siblings_have_its_label(found):
    matched, mismatch = found["all matched", "retrain"], found["model mismatch", "retrain"]
    assert matched.four["UA"] > 0.9
    assert mismatch.four["UA"] < 0.5


def test_who_keeps_what_is_not_listed_keeps_hidden_forget_data(found):
    for relation in ("target mismatch", "data mismatch"):
        result = found[relation, "random_label"]
        assert result.parts["listed forget data"] < 0.3
        assert result.parts["hidden forget data"] > 0.8
        assert result.gap > found["all matched", "random_label"].gap + 0.1
    assert math.isnan(found["all matched", "ga"].parts["hidden forget data"])


def test_the_gate_finds_hidden_data_that_share_the_label(found):
    ours, plain = (found["data mismatch", name] for name in ("tarf", "random_label"))
    assert ours.parts["hidden forget data"] < plain.parts["hidden forget data"] - 0.2
    assert ours.gap < plain.gap


def test_the_same_world_gives_the_same_numbers(found):
    case = make_case("all matched", SMALL)
    original = train(case, case.train)
    exact = score(METHODS["retrain"](original, case), case)
    four = score(METHODS["ga"](original, case), case)
    assert four == found["all matched", "ga"].four
    assert mean_gap(four, exact) == found["all matched", "ga"].gap


def test_a_method_leaves_the_original_alone():
    case = make_case("data mismatch", SMALL)
    original = train(case, case.train)
    before = [p.clone() for p in original.parameters()]
    for method in METHODS.values():
        method(original, case)
    assert all(torch.equal(a, b) for a, b in zip(before, original.parameters(), strict=True))


def test_the_threshold_is_fixed_on_members_and_nonmembers():
    members, outside = np.array([0.1, 0.2]), np.array([1.0, 2.0])
    assert share_outside(np.array([0.05, 0.2, 0.3, 3.0]), members, outside) == 0.5
