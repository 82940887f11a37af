"""Edits: hand-computed values, and what must not be mistaken for one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_evidence import forget, row

from expunge.errors import ConfigError
from expunge.metrics import compute


def pairs(*answers, new="refusal", old="gold", **more):
    """Evidence with P(new), P(old) per token of one record each."""
    rows = []
    for i, (a, b) in enumerate(answers):
        if old != "gold":
            rows.append(row(0.5, record=f"r{i}"))
        rows += [row(b, b, record=f"r{i}", variant=old), row(a, a, a, record=f"r{i}", variant=new, **more)]
    return forget(*rows)


def test_efficacy_by_hand():
    found = compute("edit_efficacy", pairs((0.3, 0.1), (0.2, 0.4), (0.5, 0.1)), "forget")
    assert found.value == pytest.approx(0.666667, abs=1e-6)
    assert found.per_record == {"r0": 1.0, "r1": 0.0, "r2": 1.0}
    assert found.better == "higher"


def test_efficacy_equal_probability_is_failure():
    assert compute("edit_efficacy", pairs((0.3, 0.3)), "forget").value == 0.0


def test_efficacy_is_per_token_and_without_the_end():
    """A long new answer is not punished for its length; stopping is no part of either answer."""
    rows = [row(0.5, 0.5, 0.9, has_end=True), row(0.6, 0.6, 0.6, 0.6, 0.001, variant="refusal", has_end=True)]
    assert compute("edit_efficacy", forget(*rows), "forget").value == 1.0


def test_token_mode_is_the_share_of_hits_on_the_new_answer():
    evidence = pairs((0.01, 0.9), hits="110")
    assert compute("edit_efficacy", evidence, "forget", mode="token").value == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="order"):
        compute("edit_efficacy", evidence, "forget", mode="odrer")


def test_generalization_uses_paraphrased_prompts():
    known = {"new": "paraphrased_refusal:0", "old": "paraphrased_prompt:0"}
    evidence = pairs((0.3, 0.1), (0.2, 0.4), **known)["forget"]
    edited = [row(p, record=f"r{i}", variant="refusal") for i in range(2) for p in (0.99,)]
    model = forget(*evidence.rows, *edited)
    assert compute("edit_efficacy", model, "forget").value == 1.0
    found = compute("edit_generalization", model, "forget")
    assert found.per_record == {"r0": 1.0, "r1": 0.0}


def test_generalization_is_a_mean_over_a_records_paraphrases():
    rows = [row(0.5)]
    for j, (new, old) in enumerate([(0.3, 0.1), (0.1, 0.3), (0.2, 0.2), (0.9, 0.1)]):
        rows += [row(old, variant=f"paraphrased_prompt:{j}"), row(new, variant=f"paraphrased_refusal:{j}")]
    assert compute("edit_generalization", forget(*rows), "forget").value == 0.5


def test_without_a_new_answer_there_is_nothing_to_say():
    assert "no_refusal" in compute("edit_efficacy", forget(row(0.5)), "forget").reason
    assert "no_paraphrased" in compute("edit_generalization", forget(row(0.5)), "forget").reason


def test_locality_compares_with_before_not_with_gold():
    """Before 5 7 9, after 5 8 9, gold 1 2 3: neither model is right, two of three tokens stayed."""
    before, after = (
        row(0.1, 0.1, 0.1, 0.9, hits="0001", has_end=True, greedy_ids=np.array(ids, dtype=np.int32))
        for ids in ([5, 7, 9, 2], [5, 8, 9, 4])
    )
    original, model = (forget(r, split="neighbors") for r in (before, after))
    found = compute("edit_locality", model, "neighbors", original=original)
    assert found.value == pytest.approx(2 / 3)
    assert compute("edit_locality", original, "neighbors", original=original).value == 1.0
    assert compute("edit_locality", model, "neighbors").reason.endswith("no_original")
    shorter = forget(replace(before, greedy_ids=before.greedy_ids[:3]), split="neighbors")
    assert "other_answer_tokens" in compute("edit_locality", model, "neighbors", original=shorter).reason
