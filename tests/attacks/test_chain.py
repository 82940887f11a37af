"""Two attacks in a row: the parts alone, and both."""

from __future__ import annotations

import numpy as np
import pytest
from small_world import make_request, make_subject, taught

from expunge.attacks import Field
from expunge.attacks.chain import INJECTED, Chain, changed_models
from expunge.audit.attack_rows import Direct, attack_rows
from expunge.audit.attacking import run_attack
from expunge.data.request import Request
from expunge.errors import ConfigError
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute
from expunge.subjects import fingerprint

REQUEST = make_request()
PAIRS = (("quantize", "prefill"), ("benign", "lens"))


def strength(evidence) -> float:
    return compute("extraction_strength", {"forget": evidence}, "forget").value


def direct_score(subject):
    sheet = make_sheet(subject.encoder, REQUEST.forget, "forget")
    return compute("extraction_strength", {"forget": score_sheet(subject, sheet)}, "forget")


def parts(outcomes, *, first=None, then=None):
    return [o for o in outcomes if (o.config.get("first"), o.config.get("then")) == (first, then)]


def field(**more) -> Field:
    return Field(REQUEST, "deep", lrs=(1e-3,), **more)


@pytest.fixture(scope="module")
def subject():
    return taught(make_subject(), (*REQUEST.forget, *REQUEST.retain), 40)


@pytest.fixture(scope="module")
def outcomes(subject):
    before = fingerprint(subject.model)
    found = list(Chain(pairs=PAIRS, settings={"benign": {"steps": (3,)}}).run(subject, field()))
    assert fingerprint(subject.model) == before
    return found


def test_both_parts_stand_alone_and_together(outcomes):
    for first, then in PAIRS:
        assert parts(outcomes, then=then)
        assert parts(outcomes, first=first)
        assert parts(outcomes, first=first, then=then)


def test_all_parts_score_the_same_records(outcomes):
    wanted = {r.id for r in REQUEST.forget}
    assert all(set(o.evidence["forget"].gold) == wanted for o in outcomes if o.evidence)


def test_worst_of_the_chain_is_never_below_a_part(subject):
    """In the rows of the audit, where the worst is read."""
    fresh = make_subject(1)
    chain = Chain(pairs=PAIRS, settings={"benign": {"steps": (3,)}})
    results = {m: run_attack(chain, s, field()) for m, s in (("original", subject), ("controlled", subject))}
    results["oracle"] = run_attack(chain, fresh, field())
    scores = {
        m: direct_score(s) for m, s in (("original", subject), ("controlled", subject), ("oracle", fresh))
    }
    direct = Direct("extraction_strength", scores, {r.id: r.entity for r in REQUEST.forget}, "oracle")
    rows, _ = attack_rows("chain", results, direct)
    asked = [r for r in rows if r.metric == "extraction_strength" and not r.reason.startswith("a part")]
    (worst,) = [r for r in asked if r.worst]
    assert all(worst.controlled >= r.controlled for r in asked)
    assert worst.controlled == worst.original  # the original as unlearned


def test_a_part_that_covers_its_own_outcomes_does_not_cover_the_chain(subject):
    found = list(Chain(pairs=(("quantize", "worst_case"),)).run(subject, field()))
    assert parts(found, then="worst_case")
    assert not any(o.covers for o in found)


def test_the_changed_model_is_what_the_second_attack_sees(subject, outcomes):
    """Quantized and asked without a lead-in is the quantized model's own answer."""
    direct = parts(outcomes, first="quantize")
    led = [o for o in parts(outcomes, first="quantize", then="prefill") if o.config.get("lead_in") == ""]
    assert [strength(o.evidence["forget"]) for o in direct] == [strength(o.evidence["forget"]) for o in led]
    alone = strength(parts(outcomes, then="prefill")[0].evidence["forget"])
    assert alone == strength(score_sheet(subject, make_sheet(subject.encoder, REQUEST.forget, "forget")))


def test_held_out_folds_are_asked_only_what_they_were_not_taught(subject):
    chain = Chain(pairs=(("rtt", "prefill"),), settings={"rtt": {"folds": 2, "steps": (2,)}})
    for outcome in parts(chain.run(subject, field()), first="rtt"):
        assert sorted(outcome.evidence["forget"].gold) == sorted(r.id for r in REQUEST.forget)
    attack = chain._made("rtt")
    for _, trained in changed_models(attack, subject, field(seed=4)):
        asked = [{r.id for r in near.request.forget} for _, near in trained]
        assert len(asked) == 2
        assert not asked[0] & asked[1]


def test_injected_answers_stand_aside(subject):
    chain = Chain(pairs=(("relearn", "prefill"),), settings={"relearn": {"steps": (2,)}})
    found = list(chain.run(subject, field()))
    assert {o.aside for o in parts(found, first="relearn")} == {INJECTED}
    assert parts(found, then="prefill")[0].aside == ""


def test_a_first_attack_must_change_weights(subject):
    with pytest.raises(ConfigError, match="prefill changes no weights"):
        list(Chain(pairs=(("prefill", "lens"),)).run(subject, field()))
    with pytest.raises(ConfigError, match="unknown name"):
        Chain(pairs=(("quantise", "lens"),)).missing(field())


def test_a_pair_that_cannot_run_is_left_out_and_none_is_a_reason(subject):
    alone = Field(Request({"forget": REQUEST.forget}), "deep", lrs=(1e-3,))
    chain = Chain(
        pairs=(("benign", "lens"), ("merge_back", "lens")), settings={"benign": {"data": ("retain",)}}
    )
    assert "compares with the original" in chain.missing(alone)
    mixed = Chain(pairs=(("merge_back", "lens"), ("quantize", "lens")))
    assert mixed.missing(alone) is None
    assert {o.config.get("first") for o in mixed.run(subject, alone)} == {None, "quantize"}
    assert all(
        np.isfinite(row.logprobs).all() for o in mixed.run(subject, alone) for row in o.evidence["forget"]
    )
