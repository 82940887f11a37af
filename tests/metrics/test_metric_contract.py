"""What every registered metric must satisfy, plug-ins included."""

import inspect
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from made_evidence import SPLITS, model

from expunge.errors import ConfigError
from expunge.evidence import Evidence
from expunge.metrics import METRICS, compute, make_metric

MEMORIZER, STRANGER, ORACLE = model("memorizer"), model("stranger", 1), model("stranger", 2)
CASES = [
    (name, split)
    for name in METRICS.names()
    for split in ("forget", "report")
    if make_metric(name).applies(split)
]
each_case = pytest.mark.parametrize(("name", "split"), CASES)
each_metric = pytest.mark.parametrize("name", METRICS.names())


def score(name, evidence, split, oracle=ORACLE, seed=0):
    return compute(name, evidence, split, original=MEMORIZER, oracle=oracle, seed=seed)


def each_split(evidence, change):
    """The same model with `change` applied to the rows of every split."""
    return {name: Evidence(name, change(list(part.rows)), part.meta) for name, part in evidence.items()}


def numbers(result):
    return (result.value, result.low, result.high)


def test_there_are_metrics_of_every_kind():
    facets = {card.fields["facet"] for card in METRICS.cards()}
    assert {"forgetting", "utility", "privacy"} <= facets
    assert len(METRICS.names()) >= 20


@each_metric
def test_card_is_complete(name):
    card = next(card for card in METRICS.cards() if card.name == name)
    assert card.summary
    assert len(card.summary) <= 110
    assert set(card.fields) >= {"facet", "better", "unit"}
    assert make_metric(name).facet == card.fields["facet"]


@each_case
def test_independent_of_record_order(name, split):
    reordered = each_split(STRANGER, _records_backwards)
    assert numbers(score(name, reordered, split)) == numbers(score(name, STRANGER, split))


def _records_backwards(rows):
    order = list(dict.fromkeys(r.record_id for r in rows))[::-1]
    return [r for record in order for r in rows if r.record_id == record]


@each_case
def test_same_evidence_same_bits_and_no_mutation(name, split):
    before = {s: [r.logprobs.copy() for r in STRANGER[s]] for s in SPLITS}
    first, second = score(name, STRANGER, split), score(name, STRANGER, split)
    assert first == second
    for s in SPLITS:
        for kept, now in zip(before[s], STRANGER[s], strict=True):
            np.testing.assert_array_equal(kept, now.logprobs)


@each_case
def test_renaming_entities_changes_nothing(name, split):
    renamed = each_split(STRANGER, lambda rows: [replace(r, entity=f"z{r.entity[::-1]}") for r in rows])
    oracle = each_split(ORACLE, lambda rows: [replace(r, entity=f"z{r.entity[::-1]}") for r in rows])
    assert numbers(score(name, renamed, split, oracle)) == numbers(score(name, STRANGER, split))


@each_case
def test_splitting_entities_changes_no_value(name, split):
    alone = each_split(STRANGER, lambda rows: [replace(r, entity="") for r in rows])
    apart, together = score(name, alone, split), score(name, STRANGER, split)
    assert (apart.value, apart.per_record) == (together.value, together.per_record)


@each_case
def test_duplicating_every_record_changes_no_mean(name, split):
    def twice(rows):
        return rows + [replace(r, record_id=r.record_id + "-again") for r in rows]

    doubled = score(name, each_split(STRANGER, twice), split, each_split(ORACLE, twice))
    single = score(name, STRANGER, split)
    if name == "forget_quality":  # a p-value is no mean; the distance behind it is
        assert doubled.details["distance"] == pytest.approx(single.details["distance"])
    else:
        assert doubled.value == pytest.approx(single.value, rel=1e-9)


@each_case
def test_better_agrees_with_memorizer_and_stranger(name, split):
    def goodness(result):
        if result.better == "target":
            return -result.details["distance"]
        return result.value if result.better == "higher" else -result.value

    knows, knows_not = (goodness(score(name, m, split)) for m in (MEMORIZER, STRANGER))
    about_damage = METRICS.card(name).fields["better"] == "higher/higher"
    if split == "forget" and not about_damage:
        assert knows_not > knows
    else:
        assert knows > knows_not


@each_case
def test_empty_split_is_not_computable(name, split):
    for evidence in ({}, {split: Evidence(split, [])}):
        result = score(name, evidence, split)
        assert result.value is None
        assert result.reason


@each_case
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_nonfinite_number_is_not_computable(name, split, bad):
    def poison(rows):
        logprobs = rows[0].logprobs.copy()
        logprobs[0] = bad
        return [replace(rows[0], logprobs=logprobs), *rows[1:]]

    result = score(name, each_split(STRANGER, poison), split)
    assert result.value is None
    assert "nonfinite_evidence" in result.reason


@each_case
@pytest.mark.parametrize("who", [MEMORIZER, STRANGER], ids=["memorizer", "stranger"])
def test_value_and_interval_lie_inside_the_range(name, split, who):
    result = score(name, who, split)
    low, high = make_metric(name).range
    ends = [x for x in numbers(result) if x is not None]
    assert ends
    assert all(low <= x <= high for x in ends)
    if result.low is not None:
        assert result.low <= result.high


@each_case
def test_every_record_is_scored_or_counted_as_skipped(name, split):
    def with_gaps(rows):
        # One record without any variant, one with an empty answer.
        first, second = list(dict.fromkeys(r.record_id for r in rows))[:2]
        empty = dict.fromkeys(("logprobs", "vocab_mean", "vocab_std", "hits", "greedy_ids"))
        kept = [r for r in rows if r.record_id != first or r.variant == "gold"]
        return [
            replace(r, **{f: getattr(r, f)[:0] for f in empty}, has_end=False) if r.record_id == second else r
            for r in kept
        ]

    result = score(name, each_split(STRANGER, with_gaps), split)
    assert result.value is not None
    if result.per_record:
        assert result.n == len(result.per_record)
        assert len(result.per_record) + sum(result.skipped.values()) == len(STRANGER[split].gold)
        assert result.skipped["empty_answer"] == 1


@each_case
def test_score_is_plain_json(name, split):
    assert json.loads(json.dumps(asdict(score(name, STRANGER, split))))["metric"] == name


@each_metric
def test_settings_rebuild_the_metric(name):
    metric = make_metric(name)
    parameters = inspect.signature(type(metric)).parameters
    assert set(metric.settings) == set(parameters)
    assert type(metric)(**metric.settings).settings == metric.settings


def test_unknown_metric_and_setting_name_the_nearest():
    with pytest.raises(ConfigError, match="extraction_strength"):
        make_metric("extraction_strenght")
    with pytest.raises(ConfigError, match="mode"):
        compute("choice_accuracy", STRANGER, "forget", mod="sum")
    with pytest.raises(ConfigError, match="byte_mean"):
        make_metric("choice_accuracy", mode="bytes_mean")
    with pytest.raises(ConfigError, match="ignored"):
        compute(make_metric("mia_min_k"), STRANGER, "forget", k=0.4)


def test_interval_independent_of_other_metrics():
    alone = score("probability", STRANGER, "forget")
    for name in METRICS.names():
        score(name, STRANGER, "forget")
    assert score("probability", STRANGER, "forget") == alone
    assert numbers(score("probability", STRANGER, "forget", seed=1)) != numbers(alone)


def test_metrics_load_no_torch():
    code = (
        "import sys; from expunge.metrics import METRICS; METRICS.cards(); assert 'numpy' not in sys.modules;"
        "[METRICS.get(n) for n in METRICS.names()];"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
