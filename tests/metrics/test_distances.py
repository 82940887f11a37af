"""Distances from the original, the oracle and a random model; the mean gap; completeness."""

import math

import numpy as np
import pytest
from made_evidence import forget, row

from expunge.errors import NotComputable
from expunge.metrics import compute
from expunge.metrics.mean_gap import called_nonmembers, mean_gap


def gold(*values, column, **more):
    rows = [row(0.5, record=f"r{i}", extra={column: v}, **more) for i, v in enumerate(values)]
    return forget(*rows)


def test_zrf_uses_bits():
    # one position at 0.048795 bits from the random model, one disjoint from it: one answer of two tokens
    mean = (0.033822 / math.log(2) + 1.0) / 2
    assert compute("zrf", gold(mean, column="js_random"), "forget").value == pytest.approx(0.475603, abs=2e-6)


def test_zrf_target_is_oracle():
    oracle = gold(0.3, column="js_random")
    score = compute("zrf", gold(0.3, column="js_random"), "forget", oracle=oracle)
    assert score.details["target"] == pytest.approx(0.7)
    assert score.details["distance"] == pytest.approx(0)


def test_jaccard_is_not_agreement_rate():
    texts = ("in Tarn", "in Vess", "a cook", "a  mason")
    said = ("in Tarn", "in Vess", "a cook", "a baker")
    ours = forget(*(row(0.5, record=f"r{i}", generated=t) for i, t in enumerate(texts)))
    oracle = forget(*(row(0.5, record=f"r{i}", generated=t) for i, t in enumerate(said)))
    assert compute("completeness", ours, "forget", oracle=oracle).value == pytest.approx(0.6)


def test_completeness_ignores_white_space_and_needs_an_oracle():
    ours, oracle = (forget(row(0.5, generated=t)) for t in ("a  mason ", "a mason"))
    assert compute("completeness", ours, "forget", oracle=oracle).value == 1
    assert "no_oracle" in compute("completeness", ours, "forget").reason


def test_layer_profile_stands_beside_the_mean():
    score = compute(
        "layer_distance_to_oracle", gold([1.0, 3.0], [3.0, 5.0], column="layers_oracle"), "forget"
    )
    assert score.value == pytest.approx(3.0)
    assert score.details["by_layer"] == {"0": 2.0, "1": 4.0}


def test_gradnorm_is_the_negative_norm_and_fisher_trace_its_square():
    model = {
        "forget": forget(row(0.5, extra={"grad_norm": 5.0}))["forget"],
        "holdout": forget(row(0.5, extra={"grad_norm": 6.0}), split="holdout")["holdout"],
    }
    score = compute("mia_gradnorm", model, "forget")
    assert score.per_record == {"r0": -5.0}
    assert score.value == 1.0  # the smaller gradient is the member's
    assert compute("fisher_trace", model, "forget").value == 25.0


def test_a_row_that_was_not_annotated_is_skipped_with_the_reason():
    score = compute("activation_distance", forget(row(0.5)), "forget")
    assert score.value is None
    assert "no_l2_oracle" in score.reason


# The mean gap ------------------------------------------------------------------------------------------

FOUR = ("UA", "RA", "TA", "MIA")


def test_mean_gap_averages_absolute_values():
    ours, oracle = (
        dict(zip(FOUR, v, strict=True)) for v in ((0.95, 0.99, 0.91, 0.80), (1.0, 0.98, 0.93, 0.84))
    )
    assert mean_gap(ours, oracle) == pytest.approx(0.03)


def world(forget_hits, forget_p, retain_p=0.9, holdout_p=0.1):
    rows = [
        row(p, p, record=f"r{i}", hits=h) for i, (h, p) in enumerate(zip(forget_hits, forget_p, strict=True))
    ]
    parts = {"forget": forget(*rows)["forget"]}
    for split, p in (("retain", retain_p), ("report", retain_p), ("holdout", holdout_p)):
        parts[split] = forget(*(row(p, p, record=f"{split}{i}") for i in range(4)), split=split)[split]
    return parts


def test_ua_is_one_minus_accuracy():
    ours = world(["11", "10", "01", "11"], [0.9, 0.9, 0.05, 0.05])
    oracle = world(["00", "00", "00", "00"], [0.05] * 4)
    score = compute("mean_gap_all_hit", ours, "forget", oracle=oracle)
    assert score.details["ours"] == {"UA": 0.5, "RA": 1.0, "TA": 1.0, "MIA": 0.5}
    assert score.details["oracle"] == {"UA": 1.0, "RA": 1.0, "TA": 1.0, "MIA": 1.0}
    assert score.value == pytest.approx((0.5 + 0 + 0 + 0.5) / 4)


def compute_threshold(model):
    return called_nonmembers(model, "forget", "retain", "holdout")


def test_membership_threshold_is_the_models_own():
    model = world(["11"] * 3, [0.9, 0.5, 0.05])
    assert called_nonmembers(model, "forget", "retain", "holdout") == pytest.approx(2 / 3)
    with pytest.raises(NotComputable, match="empty_split"):
        compute_threshold({**model, "retain": forget(split="retain")["retain"]})


def test_js_range_is_the_natural_logarithm_of_two():
    score = compute("js_to_reference", gold(math.log(2), column="js_original"), "report")
    assert score.value is None  # nothing on this split
    assert compute(
        "js_to_reference", gold(math.log(2), column="js_original"), "forget"
    ).value == pytest.approx(np.log(2))
