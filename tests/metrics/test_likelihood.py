"""probability, nll, perplexity and the choice metrics against their worked examples."""

import math

import numpy as np
import pytest
from made_evidence import forget, row

from expunge.metrics import compute

GOLD = row(0.5, 0.25, 0.125, has_end=True)


def test_probability_is_geometric_mean():
    result = compute("probability", forget(GOLD), "forget")
    assert result.value == pytest.approx(0.25, abs=1e-7)
    assert compute("nll", forget(GOLD), "forget").value == pytest.approx(math.log(4), abs=1e-6)
    two = forget(GOLD, row(1.0, record="r1"))
    assert compute("probability", two, "forget").value == pytest.approx(1.25 / 2, abs=1e-7)


def test_probability_includes_end_token_once():
    for wrong in (0.353553, 0.291667, 0.015625):
        assert compute("probability", forget(GOLD), "forget").value != pytest.approx(wrong, abs=1e-3)


def test_forbidden_token_is_probability_zero():
    evidence = forget(row(0.5, 0.0, 0.5), row(0.5, record="r1"))
    assert compute("probability", evidence, "forget").per_record["r0"] == 0.0
    loss = compute("nll", evidence, "forget")
    assert loss.value == math.inf
    assert loss.high == math.inf
    assert loss.low == pytest.approx(math.log(2))
    assert compute("perplexity", evidence, "forget").value == math.inf


def test_empty_answer_is_skipped_not_nan():
    evidence = forget(GOLD, row(record="r1"), row(0.5, record="r2"))
    result = compute("probability", evidence, "forget")
    assert result.value == pytest.approx((0.25 + 0.5) / 2, abs=1e-7)
    assert result.skipped == {"empty_answer": 1}
    only_end = compute("probability", forget(row(0.5, has_end=True)), "forget")
    assert only_end.value is None
    assert only_end.skipped == {"empty_answer": 1}


def test_truncated_records_are_counted():
    result = compute("probability", forget(GOLD, row(0.5, record="r1", truncated=True)), "forget")
    assert result.details["truncated"] == 1
    assert "truncated" in result.flags


def test_perplexity_is_token_weighted():
    evidence = forget(GOLD, row(1.0, record="r1"))
    result = compute("perplexity", evidence, "forget")
    assert result.value == pytest.approx(64**0.25, rel=1e-6)
    assert result.per_record == pytest.approx({"r0": 4.0, "r1": 1.0}, rel=1e-6)
    assert result.details["nll_per_byte"] == pytest.approx(math.log(64) / 6, rel=1e-6)


def test_perplexity_overflow_is_infinite_and_kept():
    far = row(0.5, logprobs=np.array([-2000.0], dtype=np.float32))
    assert compute("perplexity", forget(far), "forget").value == math.inf


def perturbed(*probabilities, j=0, record="r0", **more):
    return row(*probabilities, record=record, variant=f"perturbed:{j}", **more)


def test_choice_probability_uses_length_normalized_terms():
    evidence = forget(row(0.2), *(perturbed(0.1, j=j) for j in range(3)))
    assert compute("choice_probability", evidence, "forget").value == pytest.approx(0.4, abs=1e-6)
    unequal = forget(row(0.2), perturbed(0.5, 0.5, 0.5, 0.5))
    assert compute("choice_probability", unequal, "forget").value == pytest.approx(2 / 7, abs=1e-6)


def test_choice_probability_handles_ragged_option_counts():
    evidence = forget(
        row(0.2),
        perturbed(0.2),
        row(0.2, record="r1"),
        *(perturbed(0.2, j=j, record="r1") for j in range(3)),
        row(0.2, record="r2"),
    )
    result = compute("choice_probability", evidence, "forget")
    assert result.per_record == pytest.approx({"r0": 0.5, "r1": 0.25})
    assert result.skipped == {"no_perturbed": 1}


def test_choice_probability_has_no_epsilon_bias():
    tiny = forget(row(1e-12), perturbed(3e-12))
    assert compute("choice_probability", tiny, "forget").value == pytest.approx(0.25, abs=1e-5)
    none = forget(row(0.0), perturbed(0.0))
    assert compute("choice_probability", none, "forget").skipped == {"no_option_possible": 1}


def choices(record, probabilities, right):
    rows = [row(0.5, record=record)]
    for j, p in enumerate(probabilities):
        tokens = p if isinstance(p, tuple) else (p,)
        rows.append(row(*tokens, record=record, variant=f"choice:{j}", label=j == right))
    return rows


def test_choice_ties_share_credit():
    evidence = forget(
        *choices("r0", (0.1, 0.7, 0.1, 0.1), 1),
        *choices("r1", (0.1, 0.7, 0.1, 0.1), 0),
        *choices("r2", (0.25, 0.25, 0.25, 0.25), 2),
    )
    result = compute("choice_accuracy", evidence, "forget")
    assert result.value == pytest.approx(1.25 / 3)
    assert result.details == pytest.approx(
        {"chance": 0.25, "target": 0.25, "distance": 1.25 / 3 - 0.25}, abs=1e-9
    )


def test_constant_model_scores_chance():
    rows = [r for i in range(4) for r in choices(f"r{i}", (0.2,) * (i + 2), 0)]
    result = compute("choice_accuracy", forget(*rows), "forget")
    assert result.value == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5]))
    assert result.details["distance"] == pytest.approx(0.0)


def test_label_index_is_zero_based():
    assert compute("choice_accuracy", forget(*choices("r0", (0.7, 0.1), 0)), "forget").value == 1.0
    assert compute("choice_accuracy", forget(*choices("r0", (0.7, 0.1), 1)), "forget").value == 0.0


def test_choice_accuracy_modes_differ_on_unequal_lengths():
    # One token of 0.2 against four of 0.5: the sum prefers the short one, the mean the long one.
    def accuracy(mode, right):
        rows = choices("r0", (0.2, (0.5, 0.5, 0.5, 0.5)), right)
        return compute("choice_accuracy", forget(*rows), "forget", mode=mode).value

    assert accuracy("sum", 0) == 1.0
    assert accuracy("token_mean", 0) == 0.0
    # 20 bytes in one token against 3 bytes in two: per byte the long text wins, per token the other.
    rows = [
        row(0.5),
        row(0.3, variant="choice:0", label=True, text_bytes=20),
        row(0.4, 0.4, variant="choice:1", label=False, text_bytes=3),
    ]
    assert compute("choice_accuracy", forget(*rows), "forget", mode="byte_mean").value == 1.0
    assert compute("choice_accuracy", forget(*rows), "forget", mode="token_mean").value == 0.0


def test_choice_accuracy_aims_at_the_oracle_where_there_is_one():
    known = forget(*choices("r0", (0.7, 0.1), 0), *choices("r1", (0.7, 0.1), 0))
    half = forget(*choices("r0", (0.7, 0.1), 0), *choices("r1", (0.7, 0.1), 1))
    result = compute("choice_accuracy", half, "forget", oracle=known)
    assert result.details["target"] == 1.0
    assert result.details["distance"] == 0.5
    assert "no_oracle" not in result.flags
