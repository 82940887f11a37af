"""The verdict engine on facts made by hand: the strawmen, the order of the questions, what cannot happen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audit.facts import TIER_1
from expunge.audit.scorecard import AttackRow, Flag
from expunge.audit.verdict import GATE, ORDER, AuditFacts, Estimate, judge

DECLARED = ("benign", "prefill", "quantize", "relearn", "rtt", "worst_case")
THREATS = {"benign": "fine-tune", "relearn": "fine-tune", "rtt": "fine-tune", "quantize": "white-box"}
KINDS = {"worst_case": "prompts", "prefill": "prompts", "lens": "read-out", "mia": "read-out"}


def row(attack: str, recovery: float | None = 0.0, half: float = 0.05, **changes: object) -> AttackRow:
    fields = {
        "attack": attack, "threat": THREATS.get(attack, "query"), "kind": KINDS.get(attack, "weights"),
        "injects": "the answer" if attack == "relearn" else "nothing", "metric": "extraction_strength",
        "split": "forget", "recovery": recovery, "low": None if recovery is None else recovery - half,
        "high": None if recovery is None else recovery + half,
    }  # fmt: skip
    if attack == "relearn":
        fields |= {"ain": 1.0, "excess_area": 0.0}
    return AttackRow(**{**fields, **changes})


def rows(**changed: AttackRow) -> tuple[AttackRow, ...]:
    return tuple(changed.get(name, row(name)) for name in DECLARED)


def facts(**changes: object) -> AuditFacts:
    """A model that passes everything, but for the changes."""
    good = {
        "metric": "extraction_strength", "original": Estimate(0.95, 0.93, 0.97),
        "controlled": Estimate(0.06, 0.04, 0.08), "oracle": Estimate(0.05, 0.03, 0.07),
        "residual": Estimate(0.01, -0.02, 0.04), "attacks": rows(), "declared": DECLARED,
        "calibration_met": True, "report_met": True, "planted_positive": True, "records": 400,
    }  # fmt: skip
    return AuditFacts(**{**good, **changes})


def word(**changes: object) -> str:
    return judge(facts(**changes)).word


def flag(name: str, model: str = "controlled") -> Flag:
    return Flag(name=name, model=model, text=f"{name} was seen")


NOT_GIVEN = {"oracle": None, "placebo": None}

# The strawmen of the reference and the rows around them -------------------------------------------------


def test_the_oracle_as_unlearned_is_robust_under_audit():
    verdict = judge(
        facts(residual=Estimate(0.0, 0.0, 0.0), attacks=[row(name, 0.0, 0.0) for name in DECLARED])
    )
    assert verdict.word == "robust under audit"
    assert verdict.worst_recovery == 0.0
    assert verdict.missing == [name for name in TIER_1 if name not in DECLARED]


def test_a_model_that_only_says_something_else_is_output_only():
    """Extraction strength reads every beginning of an answer: a refusal changes the first words alone."""
    refusing = {"residual": Estimate(0.6, 0.5, 0.7), "spoken": Estimate(0.02, -0.05, 0.09)}
    verdict = judge(facts(**refusing))
    assert verdict.word == "output-only"
    assert "first words" in verdict.decided_by
    assert word(**{**refusing, "spoken": Estimate(0.3, 0.2, 0.4)}) == "not unlearned"
    assert word(**{**refusing, "spoken": None}) == "not unlearned"
    assert word(**refusing, certificate="verified") == "output-only"
    assert word(residual=Estimate(0.02, 0.0, 0.05), spoken=Estimate(0.0)) == "robust under audit"


def test_the_oracle_with_a_certificate_is_exact():
    assert word(certificate="verified") == "exact"
    assert word(certificate="verified", planted_positive=None, profile="quick") == "exact"


def test_a_keyword_filter_is_output_only():
    verdict = judge(facts(weights_unchanged=True, attacks=rows(worst_case=row("worst_case", 0.9))))
    assert verdict.word == "output-only"
    assert verdict.decided_by == "the fingerprint of the weights"
    assert any("worst case" in reason for reason in verdict.reasons)
    assert word(weights_unchanged=True) == "output-only"


def test_always_refusing_collapses():
    verdict = judge(
        facts(flags=[flag("utility_below_bar"), flag("refuses_everything")], weights_unchanged=True)
    )
    assert verdict.word == "collapsed"
    assert "over-refusal" in verdict.modifiers


@pytest.mark.parametrize("name", GATE)
def test_every_flag_of_the_gate_collapses(name: str):
    assert word(flags=[flag(name)]) == "collapsed"
    assert word(flags=[flag(name, model="unlearned")]) == "robust under audit"


def test_random_weights_collapse_though_no_attack_succeeds():
    assert (
        word(flags=[flag("language_damaged")], calibration_met=False, residual=Estimate(-0.05)) == "collapsed"
    )


def test_the_original_as_unlearned_is_not_unlearned():
    same = facts().original
    leaks = [row(name, 1.0) for name in DECLARED]
    verdict = judge(
        facts(controlled=same, residual=Estimate(1.0, 1.0, 1.0), attacks=leaks, weights_unchanged=True)
    )
    assert verdict.word == "not unlearned"
    assert "100%" in verdict.sentence


def test_a_mask_on_the_last_block_is_output_only_through_the_read_out():
    assert word(attacks=[*rows(), row("lens", 0.8)]) == "output-only"


def test_a_gentle_refusal_is_output_only_and_lists_the_weight_attacks_too():
    verdict = judge(facts(attacks=rows(prefill=row("prefill", 0.7), benign=row("benign", 0.9))))
    assert verdict.word == "output-only"
    assert verdict.decided_by == "prefill"
    assert any(reason.startswith("Also benign") for reason in verdict.reasons)
    assert (verdict.worst_attack, verdict.worst_recovery) == ("benign", 0.9)


def test_a_weight_attack_suppresses_and_is_named_with_its_configuration():
    verdict = judge(facts(attacks=[*rows(), row("rtt", 0.23, config={"lr": 0.001})]))
    assert verdict.word == "suppressed"
    assert verdict.decided_by == "rtt (lr 0.001)"
    assert "recovery 0.23 [0.18, 0.28]" in verdict.reasons[0]


# Single questions ---------------------------------------------------------------------------------------


def test_nothing_to_forget_comes_before_everything():
    verdict = judge(facts(original=Estimate(0.24), flags=[flag("nonfinite")]))
    assert verdict.word == "not resolved"
    assert verdict.sentence.startswith("Nothing to forget")


def test_the_bar_counts_on_calibration_and_on_report():
    assert word(calibration_met=False) == "collapsed"
    assert word(report_met=False) == "collapsed"
    verdict = judge(facts(calibration_met=None, report_met=None))
    assert verdict.word == "not resolved"
    assert "Utility was not measured against a bar." in verdict.reasons


def test_a_collapsed_model_points_to_the_alpha_that_passes():
    verdict = judge(facts(calibration_met=False, smaller_alpha=0.4))
    assert any("α = 0.4" in reason for reason in verdict.reasons)


def test_relearning_on_the_answers_counts_through_time_only():
    back = {"recovery": 1.0, "low": 0.9, "high": 1.1}
    assert word(attacks=rows(relearn=row("relearn", **back))) == "robust under audit"
    assert word(attacks=rows(relearn=row("relearn", ain=0.4))) == "suppressed"
    assert word(attacks=rows(relearn=row("relearn", ain=0.5))) == "robust under audit"
    assert word(attacks=rows(relearn=row("relearn", ain=None, excess_area=0.2))) == "suppressed"
    assert judge(facts(attacks=rows(relearn=row("relearn", **back)))).worst_recovery == 0.0


def test_a_recovery_whose_interval_holds_zero_neither_condemns_nor_clears():
    verdict = judge(facts(attacks=rows(rtt=row("rtt", 0.12, 0.2))))
    assert verdict.word == "not resolved"
    assert any(reason.startswith("Too uncertain: rtt") for reason in verdict.reasons)


def test_an_interval_that_ends_above_twice_epsilon_is_not_robust():
    assert word(attacks=rows(rtt=row("rtt", 0.05, 0.16))) == "not resolved"
    assert word(attacks=rows(rtt=row("rtt", 0.05, 0.15))) == "robust under audit"


def test_without_an_interval_a_leak_counts_and_a_clean_attack_does_not_clear():
    assert word(attacks=rows(rtt=row("rtt", 0.3, low=None, high=None))) == "suppressed"
    assert word(attacks=rows(rtt=row("rtt", 0.0, low=None, high=None))) == "not resolved"


def test_quick_is_never_robust_and_says_so():
    verdict = judge(facts(profile="quick"))
    assert verdict.word == "not resolved"
    assert "quick" in verdict.decided_by
    assert word(profile="deep") == "robust under audit"


@pytest.mark.parametrize("tried", [None, False])
def test_attacks_that_may_be_weak_prove_nothing(tried: bool | None):
    assert word(planted_positive=tried) == "not resolved"
    assert word(planted_positive=tried, attacks=rows(rtt=row("rtt", 0.5))) == "suppressed"


def test_a_declared_attack_without_result_is_named_with_its_reason():
    broken = row("rtt", None, reason="the attack ruins the original too")
    verdict = judge(facts(attacks=rows(rtt=broken)))
    assert verdict.word == "not resolved"
    assert "rtt gave no result: the attack ruins the original too." in verdict.reasons
    assert "rtt" in verdict.missing
    assert "rtt" not in verdict.attacks
    skipped = judge(
        facts(attacks=[r for r in rows() if r.attack != "rtt"], skipped={"rtt": "one record only"})
    )
    assert "rtt gave no result: one record only." in skipped.reasons


def test_one_computable_configuration_is_enough_for_an_attack():
    broken = row("rtt", None, reason="the attack teaches the oracle everything", config={"lr": 1})
    assert word(attacks=[*rows(), broken]) == "robust under audit"


def test_nan_is_no_result():
    nan = float("nan")
    assert word(attacks=rows(rtt=row("rtt", nan, low=nan, high=nan))) == "not resolved"


# Without an oracle --------------------------------------------------------------------------------------


def test_without_an_oracle_the_best_is_not_resolved_against_the_placebo():
    verdict = judge(facts(oracle=None, placebo=Estimate(0.05)))
    assert verdict.word == "not resolved"
    assert verdict.sentence.startswith("Suppressed or better, not resolved")
    assert verdict.oracle == "none (placebo)"
    assert "graded against the placebo" in verdict.reasons[0]


def test_the_placebo_can_still_condemn():
    placebo = {"oracle": None, "placebo": Estimate(0.05)}
    verdict = judge(facts(**placebo, attacks=rows(rtt=row("rtt", 0.5, baseline="placebo"))))
    assert verdict.word == "suppressed"
    assert "No oracle: graded against the placebo." in verdict.reasons
    assert word(**placebo, residual=Estimate(0.4)) == "not unlearned"


def test_with_nothing_to_compare_only_the_obvious_is_said():
    nothing = {**NOT_GIVEN, "residual": None, "attacks": ()}
    assert word(**nothing) == "not resolved"
    assert word(**nothing, controlled=Estimate(0.94)) == "not unlearned"
    assert word(**nothing, weights_unchanged=True) == "output-only"


# Certificate --------------------------------------------------------------------------------------------


def test_a_certificate_that_an_attack_contradicts_raises_an_alarm():
    verdict = judge(facts(certificate="verified", attacks=rows(rtt=row("rtt", 0.5))))
    assert verdict.word == "suppressed"
    assert "certificate contradicted" in verdict.modifiers
    assert any(reason.startswith("Alarm") for reason in verdict.reasons)
    assert word(certificate="verified", weights_unchanged=True) == "output-only"
    assert word(certificate="verified", attacks=()) == "not resolved"


# Modifiers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "modifier"),
    [
        ({"residual": Estimate(-0.2, -0.3, -0.1)}, "over-unlearned"),
        ({"attacks": rows(rtt=row("rtt", -0.2))}, "over-unlearned"),
        ({"auc": Estimate(0.3), "oracle_auc": Estimate(0.5)}, "over-unlearned"),
        ({"auc": Estimate(0.3)}, "over-unlearned"),
        ({"auc": Estimate(0.8, 0.7, 0.9), "oracle_auc": Estimate(0.5)}, "membership detectable"),
        ({"neighbor_drop": Estimate(0.2, 0.1, 0.3), "retain_drop": Estimate(0.05)}, "neighbor damage"),
        ({"refusals": 0.2, "original_refusals": 0.1}, "over-refusal"),
    ],
)
def test_modifiers_stand_beside_the_word(changes: dict[str, object], modifier: str):
    verdict = judge(facts(**changes))
    assert verdict.word == "robust under audit"
    assert verdict.modifiers == [modifier]


@pytest.mark.parametrize(
    "changes",
    [
        {"residual": Estimate(-0.2, -0.5, 0.1)},
        {"auc": Estimate(0.45), "oracle_auc": Estimate(0.5)},
        {"auc": Estimate(0.65, 0.55, 0.75), "oracle_auc": Estimate(0.5)},
        {"neighbor_drop": Estimate(0.2, 0.01, 0.4), "retain_drop": Estimate(0.05)},
        {"refusals": 0.14, "original_refusals": 0.1},
    ],
)
def test_within_the_margin_or_the_interval_no_modifier_is_printed(changes: dict[str, object]):
    assert judge(facts(**changes)).modifiers == []


# What must hold for any facts ---------------------------------------------------------------------------

share = st.floats(-0.3, 1.2)
maybe = st.sampled_from([None, True, False])


@st.composite
def attack_rows(draw: st.DrawFn) -> AttackRow:
    name = draw(st.sampled_from([*DECLARED, "lens"]))
    half = draw(st.sampled_from([0.0, 0.05, 0.2, 0.6]))
    if name == "relearn":
        return row(
            name,
            draw(share),
            half,
            ain=draw(st.none() | st.floats(0, 2)),
            excess_area=draw(st.none() | share),
        )
    changes = {"low": None, "high": None} if draw(st.booleans()) else {}
    return row(name, draw(st.none() | share), half, config={"lr": draw(st.integers(0, 3))}, **changes)


@st.composite
def any_facts(draw: st.DrawFn) -> AuditFacts:
    near = st.floats(-0.3, 0.15)  # most facts should get past the first questions
    attacks = draw(st.lists(attack_rows(), max_size=4)) + [
        row(n, draw(near)) for n in DECLARED if draw(st.booleans())
    ]
    return facts(
        original=Estimate(draw(st.floats(0.1, 1.0))),
        oracle=draw(st.none() | st.just(Estimate(0.05))),
        placebo=draw(st.none() | st.just(Estimate(0.05))),
        residual=draw(st.none() | near.map(Estimate)),
        attacks=attacks,
        declared=tuple(draw(st.sets(st.sampled_from(DECLARED)))),
        calibration_met=draw(maybe),
        report_met=draw(maybe),
        weights_unchanged=draw(st.sampled_from([False, False, True])),
        certificate=draw(st.sampled_from([None, "verified"])),
        planted_positive=draw(st.sampled_from([True, True, False, None])),
        profile=draw(st.sampled_from(["default", "deep", "quick"])),
    )


def not_better(before: str, after: str) -> bool:
    """*not resolved* stands beside the order, but may not turn into a claim that nothing came back."""
    if "not resolved" in (before, after):
        return after == "not resolved" or after not in ("exact", "robust under audit")
    return ORDER.index(after) >= ORDER.index(before)


def raised(attack: AttackRow, by: float) -> AttackRow:
    if attack.recovery is None:
        return attack
    moved = {name: getattr(attack, name) for name in ("recovery", "low", "high", "excess_area")}
    moved = {name: None if value is None else value + by for name, value in moved.items()}
    if attack.ain is not None:
        moved["ain"] = max(0.0, attack.ain - by)
    return attack.model_copy(update=moved)


@settings(max_examples=200, deadline=None)
@given(any_facts(), st.floats(0, 1), st.integers(0, 9))
def test_raising_one_recovery_never_improves_the_verdict(given_facts: AuditFacts, by: float, which: int):
    attacks = list(given_facts.attacks)
    if not attacks:
        return
    attacks[which % len(attacks)] = raised(attacks[which % len(attacks)], by)
    assert not_better(judge(given_facts).word, judge(replace(given_facts, attacks=attacks)).word)


@settings(max_examples=200, deadline=None)
@given(any_facts(), st.floats(0, 1))
def test_raising_the_direct_residual_never_improves_the_verdict(given_facts: AuditFacts, by: float):
    if given_facts.residual is None:
        return
    worse = replace(given_facts, residual=Estimate(given_facts.residual.value + by))
    assert not_better(judge(given_facts).word, judge(worse).word)


@settings(max_examples=200, deadline=None)
@given(any_facts(), st.sampled_from(GATE), st.sampled_from(["flag", "calibration_met", "report_met"]))
def test_lowering_utility_never_improves_the_verdict(given_facts: AuditFacts, name: str, how: str):
    changes = {"flags": [flag(name)]} if how == "flag" else {how: False}
    after = judge(replace(given_facts, **changes)).word
    assert not_better(judge(given_facts).word, after)
    assert after in ("collapsed", "not resolved")


@settings(max_examples=200, deadline=None)
@given(any_facts(), st.sampled_from([0.0, 0.05, 0.2, 0.5]), st.sampled_from([0.0, 0.05, 0.3]))
def test_a_larger_epsilon_never_gives_a_worse_verdict(given_facts: AuditFacts, epsilon: float, more: float):
    strict = judge(replace(given_facts, epsilon=epsilon)).word
    lax = judge(replace(given_facts, epsilon=epsilon + more)).word
    assert not_better(lax, strict)


@settings(max_examples=200, deadline=None)
@given(any_facts())
def test_without_an_oracle_never_exact_or_robust(given_facts: AuditFacts):
    assert judge(replace(given_facts, oracle=None)).word not in ("exact", "robust under audit")


@settings(max_examples=200, deadline=None)
@given(any_facts(), st.randoms(use_true_random=False))
def test_the_order_of_attacks_and_flags_changes_nothing(given_facts: AuditFacts, random: object):
    shuffled = list(given_facts.attacks)
    random.shuffle(shuffled)
    flags = [flag("language_damaged"), flag("nonfinite")]
    for chosen in ([], flags):
        before = judge(replace(given_facts, flags=chosen))
        assert judge(replace(given_facts, attacks=shuffled, flags=chosen[::-1])) == before


@settings(max_examples=200, deadline=None)
@given(any_facts())
def test_every_verdict_says_why(given_facts: AuditFacts):
    verdict = judge(given_facts)
    assert verdict.sentence.endswith(".")
    assert verdict.reasons
    assert all(reason.endswith(".") for reason in verdict.reasons)
    assert verdict.decided_by
