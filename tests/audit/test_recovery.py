"""Leakage, recovery and speed: golden values, edges, and the interval of a worst case."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.attack_rows import Direct, attack_rows
from expunge.audit.recovery import (
    Ain,
    ain,
    align,
    attacked,
    excess_area,
    halfway,
    leakage,
    recover,
    recovery,
    relearn_area,
    steps_to_recover,
    strongest,
)
from expunge.errors import NotComputable
from expunge.metrics.base import Score
from expunge.stats import Clusters

STEPS, CURVE = (0, 5, 10, 20), (0.0, 0.2, 0.6, 0.8)
unit = st.floats(0, 1)


def clusters(records: int = 40, per_entity: int = 4, seed: int = 0) -> Clusters:
    return Clusters([f"entity-{i // per_entity}" for i in range(records)], seed)


def scores(mean: float, seed: int, configurations: int = 1, records: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(mean, 0.15, (configurations, records)), 0, 1)


# Recovery ---------------------------------------------------------------------------------------------


def test_golden_recovery_and_leakage():
    assert recovery(0.9, 0.5, 0.1) == pytest.approx(0.5)
    assert leakage(0.5, 0.1) == pytest.approx(0.4)


def test_nothing_to_recover_is_a_reason_not_a_number():
    with pytest.raises(NotComputable, match=r"0\.020"):
        recovery(0.12, 0.11, 0.10)
    with pytest.raises(NotComputable, match="half the width"):
        recovery(0.5, 0.3, 0.2, half_width=0.4)
    with pytest.raises(NotComputable):
        recovery(0.1, 0.5, 0.9)
    for broken in (math.nan, math.inf):
        with pytest.raises(NotComputable, match="finite"):
            recovery(0.9, broken, 0.1)


def test_recovery_is_not_clipped():
    assert recovery(0.9, 0.0, 0.1) == pytest.approx(-0.125)
    assert recovery(0.5, 0.9, 0.1) == pytest.approx(2.0)


@given(unit, unit, unit, st.floats(1, 10), st.floats(-5, 5))
def test_recovery_ends_and_affine_invariance(original, controlled, oracle, scale, shift):
    if original - oracle < 0.1:
        return
    assert recovery(original, original, oracle) == 1
    assert recovery(original, oracle, oracle) == 0
    moved = recovery(*(scale * m + shift for m in (original, controlled, oracle)))
    assert moved == pytest.approx(recovery(original, controlled, oracle), abs=1e-9)


def test_align_keeps_what_every_model_has():
    ids, (a, b) = align({"y": 1.0, "x": 2.0, "z": 3.0}, {"x": 4.0, "y": 5.0})
    assert ids == ["x", "y"]
    assert a.tolist() == [2.0, 1.0]
    assert b.tolist() == [4.0, 5.0]
    with pytest.raises(NotComputable):
        align({"x": 1.0}, {"y": 1.0})


def test_strongest_takes_the_maximum_per_source():
    rows = {"a": 0.1, "a#1": 0.9, "b": 0.4, "b#1": 0.2}
    assert strongest(rows, {"a#1": "a", "b#1": "b"}) == {"a": 0.9, "b": 0.4}
    assert strongest(rows, {}) == rows


# The worst case ---------------------------------------------------------------------------------------


def test_worst_configuration_and_its_draws():
    table = np.array([[0.2] * 4, [0.6] * 4, [0.4] * 4])
    found = attacked(table, clusters(4, 2))
    assert found.worst == 1
    assert found.value == pytest.approx(0.6)
    assert found.draws == pytest.approx(np.full(1000, 0.6))


def test_maximum_is_taken_again_inside_each_draw():
    """Two configurations, equal on average, know different entities: each draw picks its own worst."""
    table = np.zeros((2, 40))
    table[0, :20], table[1, 20:] = 1.0, 1.0
    groups = clusters()
    found = attacked(table, groups)
    each = np.stack([groups.ratio(row) for row in table])
    assert found.value == 0.5
    assert np.array_equal(found.draws, each.max(0))
    assert found.draws.mean() > 0.52
    assert found.draws.min() >= 0.5


def test_an_added_configuration_never_lowers_the_worst_case():
    groups, table = clusters(), scores(0.4, 1, configurations=5)
    for n in range(1, 5):
        fewer, more = attacked(table[:n], groups), attacked(table[: n + 1], groups)
        assert more.value >= fewer.value
        assert (more.draws >= fewer.draws).all()


def test_the_original_recovers_all_and_the_oracle_nothing_in_every_draw():
    groups = clusters()
    original, oracle = (attacked(scores(m, i, 3), groups) for i, m in enumerate((0.9, 0.1)))
    same = recover(original, original, oracle)
    assert (same.recovery, same.interval) == (1, (1, 1))
    none = recover(original, oracle, oracle)
    assert (none.recovery, none.interval, none.leakage_interval) == (0, (0, 0), (0, 0))


def test_interval_holds_the_value_and_is_paired():
    groups = clusters()
    table = {m: scores(m, int(10 * m), 2) for m in (0.9, 0.5, 0.1)}
    original, controlled, oracle = (attacked(t, groups) for t in table.values())
    result = recover(original, controlled, oracle)
    assert result.recovery == pytest.approx(0.5, abs=0.1)
    assert result.interval is not None
    assert result.interval.low < result.recovery < result.interval.high
    assert result.leakage_interval.low < result.leakage < result.leakage_interval.high
    # shifting all models by the same entity effect changes nothing when the same entities are drawn
    effect = np.repeat(np.linspace(-0.3, 0.3, 10), 4)
    shifted = recover(*(attacked(t + effect, groups) for t in table.values()))
    assert shifted.leakage_interval == pytest.approx(result.leakage_interval, abs=0.05)


def test_no_gap_within_its_interval_is_not_computable():
    groups = clusters(8, 4)
    noisy = np.array([1.0] * 4 + [0.0] * 4)
    original, oracle = attacked(noisy, groups), attacked(noisy[::-1] * 0.8, groups)
    result = recover(original, original, oracle)
    assert result.recovery is None
    assert result.interval is None
    assert "half the width" in result.reason
    assert result.leakage == pytest.approx(0.1)


def test_placebo_has_its_own_records():
    groups, others = clusters(40), clusters(12, 3, seed=1)
    result = recover(
        attacked(scores(0.9, 0), groups),
        attacked(scores(0.3, 1), groups),
        attacked(scores(0.1, 2, records=12), others),
    )
    assert result.recovery == pytest.approx(0.25, abs=0.1)


# Speed ------------------------------------------------------------------------------------------------


def test_golden_steps_and_area():
    assert halfway(1, 0) == 0.5
    assert steps_to_recover(STEPS, CURVE, halfway(1, 0)) == 10
    assert relearn_area(STEPS, CURVE) == pytest.approx(0.475)
    assert relearn_area((0, 10, 20, 40), (0, 0.4, 0.6, 0.8)) == pytest.approx(0.525)
    assert relearn_area((0, 10, 20, 40), (0, 0.1, 0.3, 0.6)) == pytest.approx(0.2875)
    assert excess_area((0, 10, 20, 40), (0, 0.4, 0.6, 0.8), (0, 0.1, 0.3, 0.6)) == pytest.approx(0.2375)


def test_never_recovered_is_censored_not_the_horizon():
    assert steps_to_recover(STEPS, CURVE, 0.9) is None
    assert steps_to_recover(STEPS, (0.95, 0.2, 0.6, 0.8), 0.9) == 0
    assert steps_to_recover(STEPS, (0.0, math.nan, 0.6, 0.8), 0.5) == 10


def test_area_of_a_curve_without_steps_is_not_computable():
    for steps, values in (((0,), (0.5,)), (STEPS, (0, math.nan, 0.6, 0.8))):
        with pytest.raises(NotComputable):
            relearn_area(steps, values)


@pytest.mark.parametrize("steps", [(5, 10, 20, 40), (0, 10, 10, 20), (0, 5, 10), ()])
def test_a_curve_starts_before_the_first_update(steps):
    with pytest.raises(ValueError, match="step 0"):
        relearn_area(steps, CURVE)
    with pytest.raises(ValueError, match="step 0"):
        steps_to_recover(steps, CURVE, 0.5)


def test_area_is_that_of_the_level_for_a_flat_curve():
    assert relearn_area(STEPS, (0.3,) * 4) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("controlled", "oracle", "expected"),
    [
        (40, 80, Ain(0.5)),
        (20, 20, Ain(1.0)),
        (0, 0, Ain(1.0)),
        (0, 10, Ain(0.0)),
        (0, None, Ain(0.0)),
        (40, None, Ain(0.5, "upper")),
        (None, 20, Ain(4.0, "lower")),
    ],
)
def test_ain_and_its_bounds(controlled, oracle, expected):
    assert ain(controlled, oracle, 80) == expected


@pytest.mark.parametrize(("controlled", "oracle"), [(None, None), (5, 0), (None, 0)])
def test_ain_that_says_nothing_is_not_computable(controlled, oracle):
    with pytest.raises(NotComputable):
        ain(controlled, oracle, 80)


# From outcomes to rows --------------------------------------------------------------------------------


def entry(config: dict, values: dict[str, float], metric: str = "", aside: str = "", split: str = "forget"):
    entities = {record: i for i, record in enumerate(values)}
    scores = {split: {metric or "extraction_strength": values}}
    common = {"config": config, "step": None, "metric": metric, "aside": aside, "details": {}}
    return {**common, "scores": scores, "entities": {split: entities}}


def rows_of(*configs: dict[str, dict]) -> list:
    """Rows of an attack from configuration → model → entry, against a full original and an empty oracle."""
    results = {m: [c[m] for c in configs] for m in ("original", "controlled", "oracle")}
    tables = {"original": 1.0, "controlled": 0.0, "oracle": 0.0}
    direct = Direct(
        METRIC,
        {m: Score(METRIC, "forget", v, per_record=dict.fromkeys(IDS, v)) for m, v in tables.items()},
        {i: i for i in IDS},
        "oracle",
    )
    return attack_rows("prompts", results, direct)[0]


METRIC = "extraction_strength"
IDS = [f"r{i}" for i in range(20)]


def config(name: str, controlled: float, metric: str = "", ids=IDS, **more) -> dict[str, dict]:
    values = {"original": 1.0, "controlled": controlled, "oracle": 0.0}
    return {m: entry({"template": name}, dict.fromkeys(ids, v), metric, **more) for m, v in values.items()}


def test_worst_of_one_kind_of_score_is_the_maximum():
    rows = rows_of(config("a", 0.1), config("b", 0.4))
    assert [(r.config, r.worst) for r in rows[:2]] == [({"template": "a"}, False), ({"template": "b"}, False)]
    assert rows[2].config == {"worst of": 2}
    assert rows[2].recovery == pytest.approx(0.4)


def test_another_kind_of_score_convicts_and_does_not_acquit():
    weak = rows_of(config("a", 0.1), config("b", 0.2), config("options", 0.0, "choice_accuracy"))
    assert [r.metric for r in weak if r.worst] == ["extraction_strength"]
    found = rows_of(config("a", 0.1), config("b", 0.2), config("options", 0.6, "choice_accuracy"))
    assert {r.metric: r.recovery for r in found if r.worst} == pytest.approx(
        {"extraction_strength": 0.2, "choice_accuracy": 0.6}
    )


def test_a_template_for_some_records_does_not_shrink_the_others():
    rows = rows_of(config("a", 0.1), config("b", 0.2), config("few", 0.9, ids=IDS[:6]))
    worst = [r for r in rows if r.worst]
    assert [(r.n, round(r.recovery, 6)) for r in worst] == [(20, 0.2), (6, 0.9)]


def test_what_stands_aside_has_numbers_and_no_recovery():
    rows = rows_of(config("a", 0.1), config("given", 0.9, "prefix_success", aside="a part is given"))
    (aside,) = [r for r in rows if r.reason == "a part is given"]
    assert (aside.original, aside.controlled, aside.oracle) == pytest.approx((1.0, 0.9, 0.0))
    assert aside.recovery is None
    assert not aside.worst
    assert aside.details["excess"] == pytest.approx([-0.1] * 3)
    assert [r.config for r in rows if r.worst] == [{"template": "a"}]
    only = rows_of(config("x", 0.9, "choice_drop", aside="counts against utility", split="report"))
    assert [(r.worst, r.split, r.recovery) for r in only] == [(False, "report", None)]


def test_an_outcome_that_covers_the_others_is_the_worst():
    sweep = [config("all", 0.5), config("few", 0.9, ids=IDS[:6])]
    for one in sweep[0].values():
        one["covers"] = True
    rows = rows_of(*sweep)
    assert [(r.config["template"], r.worst) for r in rows] == [("all", True), ("few", False)]
