"""The two things an unlearning may be for, judged apart.

*Influence erasure*: the model is as if it had never seen the records; less than the oracle is as telling as
more, and membership, speed of relearning and planted behavior count. *Capability removal*: the model can no
longer do or tell it, whichever records taught it; going beyond the oracle is no fault. Liu et al. 2024
(arXiv 2402.08787) tell the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from expunge.audit.facts import AuditFacts, Estimate, described, is_timed, label
from expunge.audit.scorecard import AimRow, CheckRow
from expunge.audit.verdict import GATE

__all__ = ["judge_aims"]


def judge_aims(facts: AuditFacts, checks: Sequence[CheckRow], aim: str) -> list[AimRow]:
    """Influence erasure, then capability removal; `aim` is the one the request asked for."""
    return [_influence(facts, checks, aim), _capability(facts, checks, aim)]


def _influence(facts: AuditFacts, checks: Sequence[CheckRow], asked: str) -> AimRow:
    name = "erase_influence"
    against = [*_failed(checks, name), *_leaking(facts), *_residue(facts, two_sided=True)]
    if facts.certificate == "verified" and not facts.contradictions():
        return _row(name, asked, "shown", "the certificate", ["Checked by replay: they never influenced it."])
    if broken := _broken(facts):
        return _row(name, asked, "not resolved", "the utility gate", broken)
    if against:
        return _row(name, asked, "not shown", *_first(against))
    open_ = [] if facts.oracle else ["No oracle: whether it is as if never trained cannot be compared."]
    open_ += [f"{c.name.replace('_', ' ')}: {c.text}" for c in _of(checks, name) if c.passed is None]
    return _closing(facts, name, asked, open_)


def _capability(facts: AuditFacts, checks: Sequence[CheckRow], asked: str) -> AimRow:
    name = "remove_capability"
    against = [*_failed(checks, name), *_leaking(facts), *_residue(facts, two_sided=False)]
    if broken := _broken(facts):
        return _row(name, asked, "not resolved", "the utility gate", broken)
    if against:
        return _row(name, asked, "not shown", *_first(against))
    return _closing(facts, name, asked, [])


def _closing(facts: AuditFacts, name: str, asked: str, open_: list[str]) -> AimRow:
    """Nothing speaks against it: is there enough that speaks for it?"""
    lacking = [*open_, *facts.obstacles()]
    if name == "remove_capability" and facts.placebo:
        lacking = [text for text in lacking if not text.startswith("No oracle")]
    lacking = list(dict.fromkeys(lacking))
    if lacking:
        return _row(name, asked, "not resolved", lacking[0].rstrip("."), lacking)
    what = f"Direct residual {facts.residual} and every attack are within ε = {facts.epsilon:.2f}."
    return _row(name, asked, "shown", "every attack of the profile", [what])


def _row(name: str, asked: str, word: str, decided_by: str, reasons: list[str]) -> AimRow:
    return AimRow(aim=name, asked=name == asked, word=word, decided_by=decided_by, reasons=reasons)


def _broken(facts: AuditFacts) -> list[str]:
    grounds = [f"{flag.replace('_', ' ')}: {text}" for flag, text in facts.raised().items() if flag in GATE]
    missed = ["The bar is missed on calibration."] if facts.calibration_met is False else []
    return [*grounds, *missed]


def _of(checks: Sequence[CheckRow], aim: str) -> list[CheckRow]:
    """The checks that speak for an aim and were asked."""
    return [c for c in checks if aim in c.aim and not c.text.startswith("Not asked")]


def _failed(checks: Sequence[CheckRow], aim: str) -> list[tuple[str, str]]:
    return [(c.name.replace("_", " "), c.text) for c in _of(checks, aim) if c.passed is False]


def _leaking(facts: AuditFacts) -> list[tuple[str, str]]:
    """Untimed leaks count for both aims; how fast the answers are learned again is the suite's question."""
    same = [("the fingerprint of the weights", "The weights are those of the original.")]
    rows = [(label(row), described(row)) for row in facts.leaks() if not is_timed(row)]
    return [*(same if facts.weights_unchanged else []), *rows]


def _residue(facts: AuditFacts, *, two_sided: bool) -> list[tuple[str, str]]:
    left = facts.residual
    if left is None:
        return []
    where = f"{facts.metric} on forget, asked directly"
    if left.value > facts.epsilon:
        return [(where, f"Direct residual {left} is above ε = {facts.epsilon:.2f}.")]
    if two_sided and facts.oracle and _below(left, facts.epsilon):
        return [(where, f"Direct residual {left}: it knows less than a model that never saw the records.")]
    return []


def _below(left: Estimate, epsilon: float) -> bool:
    return left.value < -epsilon and (left.high is None or left.high < 0)


def _first(against: list[tuple[str, str]]) -> tuple[str, list[str]]:
    return against[0][0], [text for _, text in against]
