"""Truth ratio, forget quality and model utility."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from made_evidence import forget, model, row

from expunge.evidence import Evidence
from expunge.metrics import compute
from expunge.metrics.model_utility import ModelUtility
from expunge.stats import harmonic_mean

AGGREGATIONS = ("truth_ratio_closer_to_1", "truth_ratio_true_better", "truth_ratio_prob_mean")


def asked(record, true, false, reworded=None):
    """A record with the probabilities of its true and false answers, one token each."""
    rows = [row(true, record=record)]
    if reworded is not None:
        rows.append(row(reworded, record=record, variant="paraphrased_answer:0"))
    rows += [row(p, record=record, variant=f"perturbed:{j}") for j, p in enumerate(false)]
    return rows


EXAMPLE = forget(*asked("r0", 0.5, (0.25, 0.0625)), *asked("r1", 0.0625, (0.25,)))


@pytest.mark.parametrize(("name", "value"), [*zip(AGGREGATIONS, (0.25, 0.375, 0.5), strict=True)])
def test_truth_ratio_example(name, value):
    assert compute(name, EXAMPLE, "forget").value == pytest.approx(value, abs=1e-6)


def test_truth_ratio_options_averaged_in_nll():
    one = forget(*asked("r0", 0.5, (0.25, 0.0625)))
    for option_mean, ratio in (("geometric", 0.25), ("arithmetic", 0.3125)):
        got = compute("truth_ratio_closer_to_1", one, "forget", option_mean=option_mean)
        assert got.value == pytest.approx(ratio, abs=1e-6)
        assert got.settings == {"option_mean": option_mean}


def test_truth_ratio_is_wrong_over_right():
    knows = forget(*asked("r0", 0.9, (0.1,)))
    assert compute("truth_ratio_true_better", knows, "forget").value == pytest.approx(1 - 1 / 9, abs=1e-6)
    assert compute("truth_ratio_prob_mean", knows, "forget").value == pytest.approx(0.9, abs=1e-6)


def test_truth_ratio_uses_paraphrased_not_original_answer_on_forget():
    evidence = forget(*asked("r0", 1.0, (0.25,), reworded=0.5), *asked("r1", 1.0, (0.25,)))
    result = compute("truth_ratio_closer_to_1", evidence, "forget")
    assert result.per_record == pytest.approx({"r0": 0.5}, abs=1e-6)
    assert result.skipped == {"no_paraphrased_answer": 1}


@pytest.mark.parametrize(
    ("true", "false", "expected"), [(0.5, 0.0, (0.0, 1.0, 1.0)), (0.0, 0.5, (0.0, 0.0, 0.0))]
)
def test_truth_ratio_at_probability_zero(true, false, expected):
    evidence = forget(*asked("r0", true, (false,)))
    assert tuple(compute(name, evidence, "forget").value for name in AGGREGATIONS) == expected


def test_truth_ratio_skips_what_has_no_ratio():
    assert compute(AGGREGATIONS[0], forget(*asked("r0", 0.0, (0.0,))), "forget").skipped == {
        "no_answer_possible": 1
    }
    assert compute(AGGREGATIONS[0], forget(*asked("r0", 0.5, ())), "forget").skipped == {"no_perturbed": 1}


def test_truth_ratio_survives_underflow():
    def deep(nll, **more):
        return row(0.5, logprobs=np.array([-nll], dtype=np.float32), has_end=False, **more)

    evidence = forget(deep(800), deep(801, variant="perturbed:0"))
    assert compute("truth_ratio_closer_to_1", evidence, "forget").value == pytest.approx(math.exp(-1))
    for name, option_mean in ((n, m) for n in AGGREGATIONS for m in ("geometric", "arithmetic")):
        assert compute(name, evidence, "forget", option_mean=option_mean).value > 0


def ratios(values):
    """A model whose truth ratios are in proportion to these values."""
    return forget(*(r for i, v in enumerate(values) for r in asked(f"r{i}", 0.1, (0.1 * v,))))


def forget_quality(ours, theirs):
    return compute("forget_quality", ratios(ours), "forget", oracle=ratios(theirs) if theirs else None)


@pytest.mark.parametrize(
    ("ours", "theirs", "distance", "p"),
    [
        ((1, 2, 3, 4), (3, 4, 5, 6), 0.5, 0.771429),
        ((1, 2, 3, 4), (5, 6, 7, 8), 1.0, 0.028571),
        ((1, 2, 3), (1, 2, 3), 0.0, 1.0),
        ((1, 2, 3, 4, 5), (6, 7, 8, 9, 9.5), 1.0, 0.007937),
    ],
)
def test_forget_quality_example(ours, theirs, distance, p):
    result = forget_quality(ours, theirs)
    assert result.value == pytest.approx(p, abs=1e-6)
    assert result.details["distance"] == distance
    assert result.details["log10_p"] == pytest.approx(math.log10(p), abs=1e-4)
    assert result.details["n_oracle"] == len(theirs)
    assert result.per_record == pytest.approx({f"r{i}": v for i, v in enumerate(ours)}, rel=1e-5)


def test_ks_uses_raw_ratio_not_min_ratio():
    # r and 1/r look the same to min(r, 1/r) and are as far apart as can be.
    assert forget_quality((2, 3, 4, 5), (1 / 2, 1 / 3, 1 / 4, 1 / 5)).value == pytest.approx(
        0.028571, abs=1e-6
    )


def test_ks_two_sided():
    assert (
        forget_quality((1, 2, 3, 4), (5, 6, 7, 8)).value == forget_quality((5, 6, 7, 8), (1, 2, 3, 4)).value
    )


def test_ks_independent_of_row_order():
    results = {forget_quality(p, (2, 3.5, 4)).value for p in permutations((1, 2, 3, 4))}
    assert len(results) == 1


def test_ks_reference_is_oracle_not_original():
    ours, oracle, original = ratios((1, 2, 3, 4)), ratios((1, 2, 3, 4)), ratios((5, 6, 7, 8))
    assert compute("forget_quality", ours, "forget", original=original, oracle=oracle).value == 1.0


def test_ks_without_oracle_is_not_computable():
    result = forget_quality((1, 2, 3), None)
    assert result.value is None
    assert result.reason == "no_oracle"


def test_ks_distance_interval_covers_the_distance_and_p_has_none():
    result = compute("forget_quality", model("memorizer"), "forget", oracle=model("stranger"))
    assert result.low is None
    assert result.details["distance_low"] <= result.details["distance"] <= result.details["distance_high"]
    itself = compute("forget_quality", model("stranger"), "forget", oracle=model("stranger"))
    # The same entities are drawn for both, so a model never differs from itself.
    assert itself.details["distance_high"] == 0.0


def test_harmonic_mean_at_zero_is_zero_and_named():
    assert harmonic_mean([0.5, 0.25, 1.0]) == pytest.approx(0.428571, abs=1e-6)
    assert harmonic_mean([0.5] * 8 + [0.1]) == pytest.approx(0.346154, abs=1e-6)
    mute = {
        name: Evidence(name, [_silent(r) if name == "world_facts" else r for r in part])
        for name, part in model("memorizer").items()
    }
    result = compute("model_utility", mute, "report")
    assert result.value == 0.0
    assert result.details["zero_components"] == ["world_facts.rougeL_recall"]
    assert result.details["arithmetic_mean"] > 0.7


def _silent(r):
    return replace(r, generated="" if r.generated is not None else None)


def test_utility_component_count_is_nine():
    result = compute("model_utility", model("stranger"), "report")
    assert len(result.details["components"]) == 9
    parts = list(compute("model_utility", model("memorizer"), "report").details["components"].values())
    assert compute("model_utility", model("memorizer"), "report").value == pytest.approx(harmonic_mean(parts))


def test_utility_takes_normalized_probability_on_real_sets():
    names = [(split, metric.name) for split, metric in ModelUtility().components("report")]
    assert next(m for s, m in names if s == "report") == "probability"
    assert all(("choice_probability" in m) == (m.endswith("probability")) for s, m in names if s != "report")


def test_utility_names_the_missing_component():
    evidence = {k: v for k, v in model("memorizer").items() if k != "world_facts"}
    result = compute("model_utility", evidence, "report")
    assert result.value is None
    assert "world_facts.choice_probability (empty_split)" in result.reason
