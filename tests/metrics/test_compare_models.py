"""Gap to the oracle, fraction of the way to it, and paired differences."""

import math
from dataclasses import replace

import numpy as np
import pytest
from made_evidence import model, row

from expunge.evidence import Evidence
from expunge.metrics import METRICS, compute, make_metric
from expunge.metrics.base import Score
from expunge.metrics.compare import oracle_fraction, oracle_gap, paired_difference

ENTITIES = {f"r{i}": f"person-{i // 2}" for i in range(40)}


def score(values, metric="extraction_strength", **more):
    per_record = {f"r{i}": float(v) for i, v in enumerate(values)}
    return Score(metric, "forget", float(np.mean(values)), n=len(values), per_record=per_record, **more)


def around(mean, noise=0.01, seed=0):
    shake = np.random.default_rng(seed).normal(0, noise, 40)
    return score(mean + shake - shake.mean())


def test_gap_and_fraction_example():
    original, ours, oracle = around(0.86), around(0.31, seed=1), around(0.10, seed=2)
    gap = oracle_gap(ours, oracle, ENTITIES)
    assert gap.value == pytest.approx(0.21)
    assert gap.signed == pytest.approx(0.21)
    assert gap.low <= gap.value <= gap.high
    fraction = oracle_fraction(original, ours, oracle, ENTITIES)
    assert fraction.value == pytest.approx(0.723684, abs=1e-6)
    assert fraction.low < fraction.value < fraction.high


def test_gap_below_the_oracle_keeps_its_sign():
    gap = oracle_gap(around(0.05), around(0.10), ENTITIES)
    assert gap.value == pytest.approx(0.05)
    assert gap.signed == pytest.approx(-0.05)
    assert oracle_fraction(around(0.86), around(0.05), around(0.10), ENTITIES).value > 1


@pytest.mark.parametrize("name", METRICS.names())
def test_oracle_against_itself_is_zero_everywhere(name):
    oracle = model("stranger", 5)
    split = "forget" if make_metric(name).applies("forget") else "report"
    itself = compute(name, oracle, split, original=model("memorizer"), oracle=oracle)
    gap = oracle_gap(itself, itself, oracle[split].entity_of)
    assert gap.value == 0.0
    assert gap.low in (0.0, None)


def test_fraction_undefined_when_original_equals_oracle():
    exact = oracle_fraction(score([0.3] * 40), score([0.2] * 40), score([0.3] * 40), ENTITIES)
    assert (exact.value, exact.reason) == (None, "original_equals_oracle")
    noisy = oracle_fraction(around(0.30, 0.4), around(0.2), around(0.31, 0.4, seed=9), ENTITIES)
    assert (noisy.value, noisy.reason) == (None, "original_equals_oracle")


def test_no_oracle_is_not_computable():
    assert oracle_gap(around(0.3), None).reason == "no_oracle"
    broken = Score("extraction_strength", "forget", None, reason="nonfinite_evidence")
    assert oracle_fraction(around(0.8), broken, around(0.1)).reason == "nonfinite_evidence"


def test_scores_that_are_no_mean_have_a_gap_without_interval():
    evidence, other = model("stranger", 1), model("memorizer")
    ours, theirs = (compute("perplexity", m, "forget") for m in (evidence, other))
    assert paired_difference(ours, theirs, {}).reason == "not_a_mean_over_records"
    gap = oracle_gap(ours, theirs)
    assert gap.value == pytest.approx(abs(ours.value - theirs.value))
    assert gap.low is None
    assert "no_interval" in gap.flags


def test_bootstrap_paired_difference_uses_same_draws():
    # Two models that differ by a constant on every record: paired, the interval has no width.
    base = np.random.default_rng(0).random(40)
    difference = paired_difference(score(base + 0.25), score(base), ENTITIES)
    assert difference.value == pytest.approx(0.25)
    assert difference.low == pytest.approx(0.25)
    assert difference.high == pytest.approx(0.25)


def test_paired_difference_takes_shared_records_only():
    a, b = score([0.5, 0.7, 0.9]), score([0.1, 0.2])
    difference = paired_difference(a, b, {})
    assert difference.n == 2
    assert difference.value == pytest.approx(0.45)
    assert paired_difference(a, replace(b, per_record={"other": 0.15}), {}).reason == "no_shared_records"


def test_kl_example_through_evidence():
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    kl = np.array([(p * np.log(p / q)).sum()], dtype=np.float32)
    evidence = {"report": Evidence("report", [row(0.5, kl=kl, split="report")])}
    assert compute("kl_to_reference", evidence, "report").value == pytest.approx(0.143841, abs=1e-6)


def test_kl_zero_on_itself_and_never_negative():
    kl = np.array([-1e-8, 0.0], dtype=np.float32)
    evidence = {"forget": Evidence("forget", [row(0.5, 0.5, kl=kl)])}
    result = compute("kl_to_reference", evidence, "forget")
    assert result.value == 0.0
    assert result.details["target"] is None
    assert "no_oracle" in result.flags


def test_kl_of_unmeasured_evidence_and_of_nan_is_not_computable():
    assert compute("kl_to_reference", {"forget": Evidence("forget", [row(0.5)])}, "forget").skipped == {
        "no_reference_attached": 1
    }
    broken = row(0.5, kl=np.array([math.nan], dtype=np.float32))
    result = compute("kl_to_reference", {"forget": Evidence("forget", [broken])}, "forget")
    assert result.reason == "nonfinite_evidence"
