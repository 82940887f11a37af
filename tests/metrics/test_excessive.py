"""The detector of excessive unlearning."""

import math
from dataclasses import replace

import numpy as np
import pytest
from made_evidence import VOCABULARY, model

from expunge.evidence import Evidence
from expunge.metrics.excessive import (
    Thresholds,
    excessive_unlearning,
    is_refusal,
    repetition,
)

ORIGINAL, ORACLE = model("memorizer"), model("stranger", 7)


def altered(base, split, change):
    return base | {split: Evidence(split, [change(r) for r in base[split]])}


def worse(row, nats):
    return replace(row, logprobs=row.logprobs - np.float32(nats))


def says(text):
    return lambda row: replace(row, generated=text) if row.generated is not None else row


def names(evidence, **more):
    return [flag.name for flag in excessive_unlearning(evidence, ORIGINAL, **more)]


FORGOTTEN = ORIGINAL | {"forget": ORACLE["forget"]}


@pytest.mark.parametrize(
    ("text", "value"), [("a b a b a b", 1 / 3), ("a b c", 0.0), ("", 0.0), ("a b c d", 0.0), ("a " * 8, 0.8)]
)
def test_repetition(text, value):
    assert repetition(text) == pytest.approx(value)


def test_original_raises_no_flag():
    assert names(ORIGINAL, oracle=ORACLE) == []
    assert excessive_unlearning(ORACLE, ORACLE) == []


def test_good_forgetting_alone_raises_no_flag():
    assert names(FORGOTTEN, oracle=ORACLE) == []


def test_collapse_raises_language_damaged_and_degenerate_text():
    collapsed = altered(FORGOTTEN, "report", lambda r: worse(says("the " * 30)(r), 3))
    collapsed = altered(collapsed, "forget", lambda r: worse(r, 10))
    flags = {f.name: f for f in excessive_unlearning(collapsed, ORIGINAL, ORACLE)}
    assert set(flags) == {"language_damaged", "degenerate_text", "worse_than_uniform", "auc_below_half"}
    assert flags["language_damaged"].value > flags["language_damaged"].threshold
    assert flags["worse_than_uniform"].threshold == pytest.approx(math.log(VOCABULARY))
    assert len(flags["worse_than_uniform"].records) == 24


def test_repetition_alone_is_degenerate():
    text = " ".join(["one two three four five six seven eight"] * 3)
    found = excessive_unlearning(altered(ORIGINAL, "report", says(text)), ORIGINAL)
    assert [f.name for f in found] == ["degenerate_text"]
    assert len(found[0].records) == 24


def test_nan_model_is_flagged_not_perfectly_forgotten():
    def broken(row):
        return replace(row, logprobs=np.full_like(row.logprobs, np.nan))

    assert names(altered(FORGOTTEN, "report", broken), oracle=ORACLE) == ["nonfinite"]


def test_beyond_oracle_needs_the_oracle_and_the_right_side():
    # An oracle that still gets half of every answer, and a model that gets nothing.
    half = altered(ORACLE, "forget", lambda r: replace(r, hits=np.arange(len(r.hits)) * 2 >= len(r.hits)))
    none = altered(ORIGINAL, "forget", lambda r: replace(r, hits=np.zeros(len(r.hits), bool)))
    assert names(none, oracle=half) == ["beyond_oracle"]
    assert names(none) == []
    assert names(ORIGINAL, oracle=half) == []


def test_auc_below_half_blames_the_model_not_the_split():
    pushed = altered(FORGOTTEN, "forget", lambda r: worse(r, 1.5))
    assert "auc_below_half" in names(pushed)
    assert excessive_unlearning(pushed, pushed) == []


@pytest.mark.parametrize(
    "text", ["I don’t know.", "I'm sorry, but I cannot help.", "  Sorry!", "That is not on my list."]
)
def test_refusals_are_recognized(text):
    assert is_refusal(text, ["that is not on my list."])
    assert not is_refusal("She was born in Sorrymouth; I don't know when.")


def test_refuses_everything_is_relative_to_the_original():
    def sometimes(row):
        refuses = int(row.record_id[-3:]) % 10 == 0
        return says("I don't know.")(row) if refuses else row

    refusing = altered(ORIGINAL, "report", sometimes)
    found = excessive_unlearning(refusing, ORIGINAL)
    assert [f.name for f in found] == ["refuses_everything"]
    assert found[0].value == pytest.approx(3 / 24)
    assert len(found[0].records) == 3
    assert excessive_unlearning(refusing, ORIGINAL, thresholds=Thresholds(refusal_rise=0.2)) == []
    assert excessive_unlearning(refusing, refusing) == []
