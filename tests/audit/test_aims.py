"""Influence erasure and capability removal, judged apart."""

import pytest
from test_verdict import DECLARED, facts, flag, row, rows

from expunge.audit.aims import judge_aims
from expunge.audit.facts import Estimate
from expunge.audit.scorecard import CheckRow


def check(name, passed, aim="erase_influence"):
    return CheckRow(name=name, question="?", aim=aim, passed=passed, text=f"{name} was measured.")


GOOD = [check("membership", True), check("relearning", True)]


def aims(checks=GOOD, aim="erase_influence", **changes):
    influence, capability = judge_aims(facts(**changes), checks, aim)
    return influence, capability


def words(**changes):
    return tuple(row.word for row in aims(**changes))


def test_everything_passed_shows_both():
    assert words() == ("shown", "shown")


def test_which_was_asked_for_is_marked():
    assert [row.asked for row in aims(aim="remove_capability")] == [False, True]


def test_knowing_less_than_the_oracle_is_a_trace_and_no_fault_of_removal():
    assert words(residual=Estimate(-0.3, -0.4, -0.2)) == ("not shown", "shown")


def test_failed_membership_speaks_against_influence_only():
    found = aims(checks=[check("membership", False), check("relearning", True)])
    assert [row.word for row in found] == ["not shown", "shown"]
    assert found[0].decided_by == "membership"


def test_relearning_faster_than_the_oracle_speaks_against_influence_only():
    fast = rows(relearn=row("relearn", 0.0, ain=0.1, excess_area=0.5))
    assert (
        words(attacks=fast, checks=[check("membership", True), check("relearning", False)])[0] == "not shown"
    )


@pytest.mark.parametrize("attack", ["prefill", "rtt", "quantize"])
def test_a_leak_speaks_against_both(attack):
    found = aims(attacks=rows(**{attack: row(attack, 0.6)}))
    assert [row.word for row in found] == ["not shown", "not shown"]
    assert attack in found[0].decided_by


def test_direct_residual_speaks_against_both():
    assert words(residual=Estimate(0.5, 0.4, 0.6)) == ("not shown", "not shown")


def test_without_an_oracle_influence_cannot_be_shown_and_removal_can():
    assert words(oracle=None, placebo=Estimate(0.05)) == ("not resolved", "shown")
    assert words(oracle=None, placebo=None) == ("not resolved", "not resolved")


def test_an_open_check_leaves_influence_open():
    assert words(checks=[check("membership", None), check("relearning", True)]) == ("not resolved", "shown")


def test_a_damaged_model_shows_nothing():
    assert words(flags=[flag("language_damaged")]) == ("not resolved", "not resolved")
    assert words(calibration_met=False) == ("not resolved", "not resolved")


def test_a_certificate_shows_influence_without_attacks():
    found = aims(certificate="verified", checks=[check("membership", None)], profile="quick")
    assert (found[0].word, found[0].decided_by) == ("shown", "the certificate")


def test_a_short_audit_resolves_nothing():
    assert words(profile="quick") == ("not resolved", "not resolved")
    assert words(attacks=[row(name) for name in DECLARED[1:]]) == ("not resolved", "not resolved")


def test_unchanged_weights_show_nothing():
    assert words(weights_unchanged=True) == ("not shown", "not shown")
