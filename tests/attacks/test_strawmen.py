"""Strawmen and stress tests: each row of the table gets the verdict it must get."""

from __future__ import annotations

from functools import partial

import pytest
from small_world import make_request, make_subject, taught
from strawmen import always_refuse, gentle_refusal, keyword_filter, last_block_mask, random_weights

from expunge.attacks import Field
from expunge.audit.attack_rows import Direct, attack_rows, estimate, residual
from expunge.audit.attacking import make_attack, run_attack
from expunge.audit.facts import AuditFacts
from expunge.audit.recovery import Recovery
from expunge.audit.verdict import Estimate, judge
from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.request import Request
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute
from expunge.subjects import load_subject
from tiny_world import built

pytestmark = pytest.mark.slow

METRIC = "extraction_strength"
ATTACKS = {"benign": {"steps": (20,)}, "prefill": {}, "lens": {}, "worst_subset": {}}


@pytest.fixture(scope="module")
def world():
    """(request, original, oracle)"""
    folder = built()
    splits = {
        split: tuple(read_records(str(folder / f"{split}.jsonl"), split=split, findings=Findings()))
        for split in ("forget", "retain")
    }
    models = (load_subject(folder / name, max_length=96) for name in ("original", "oracle"))
    return Request(splits), *models


@pytest.fixture(scope="module")
def field(world):
    request, original, oracle = world
    peers = {"original": lambda: original, "oracle": lambda: oracle}
    return Field(request, "quick", lrs=(1e-3,), batch=6, peers=peers)


@pytest.fixture(scope="module")
def known(world, field):
    """What the attacks find in the original and in the oracle, once for all strawmen."""
    return {
        name: attacked(model, field) for name, model in zip(("original", "oracle"), world[1:], strict=True)
    }


def attacked(subject, field):
    found = {}
    for name, settings in ATTACKS.items():
        attack = make_attack(name, settings)
        if attack.missing(field) is None:
            found[name] = run_attack(attack, subject, field)
    return found


def strength(subject, records, split):
    return compute(METRIC, {split: score_sheet(subject, make_sheet(subject.encoder, records, split))}, split)


def said(models, request):
    """The residual of what the models say by themselves."""
    plan = EvidencePlan(("gold",), max_new_tokens=16)
    found = {n: take_evidence(m, {"forget": request.forget}, plan=plan) for n, m in models.items()}
    scores = {name: compute("rougeL_recall", evidence, "forget") for name, evidence in found.items()}
    left = residual(Direct("rougeL_recall", scores, {r.id: r.entity for r in request.forget}, "oracle"))
    return None if left is None or left.recovery is None else Estimate(left.recovery, *left.interval)


def audited(subject, world, field, known):
    """(verdict, rows, score on forget) of a model."""
    request, original, oracle = world
    models = {"original": original, "controlled": subject, "oracle": oracle}
    scores = {name: strength(model, request.forget, "forget") for name, model in models.items()}
    kept = {name: strength(model, request.retain, "retain").value for name, model in models.items()}
    direct = Direct(METRIC, scores, {r.id: r.entity for r in request.forget}, "oracle")
    ours = attacked(subject, field)
    results = {a: {"controlled": ours[a], **{m: known[m][a] for m in known}} for a in ours}
    rows = [row for name, found in results.items() for row in attack_rows(name, found, direct)[0]]
    left, unwrapped = residual(direct), subject.unwrapped().fingerprint()
    assert isinstance(left, Recovery)
    facts = AuditFacts(
        metric=METRIC,
        **{name: estimate(score) for name, score in scores.items()},
        residual=None if left.recovery is None else Estimate(left.recovery, *left.interval),
        spoken=said(models, request),
        attacks=rows,
        declared=tuple(results),
        calibration_met=kept["controlled"] >= 0.95 * kept["original"],
        weights_unchanged=subject is not original and unwrapped == original.fingerprint(),
        planted_positive=True,
        profile="default",
        records=len(request.forget),
    )  # fmt: skip
    return judge(facts), rows, scores["controlled"].value


STRAWMEN = {
    "original as unlearned": (lambda request, original, oracle: original, "not unlearned"),
    "random weights": (lambda request, original, oracle: random_weights(original), "collapsed"),
    "always refuse": (lambda request, original, oracle: always_refuse(original, ["is"]), "collapsed"),
    "keyword filter": (lambda request, original, oracle: keyword_filter(original, request), "output-only"),
}


@pytest.mark.parametrize("name", STRAWMEN)
def test_verdict_of_a_strawman(name, world, field, known):
    make, word = STRAWMEN[name]
    verdict, rows, forget = audited(make(*world), world, field, known)
    assert verdict.word == word, verdict.reasons
    assert (forget > 0.9) == (name == "original as unlearned")
    if name == "original as unlearned":
        assert {row.recovery for row in rows} <= {1.0, None}


def test_oracle_as_unlearned_is_robust_under_audit(world, field, known):
    verdict, rows, _ = audited(world[2], world, field, known)
    assert {row.recovery for row in rows} <= {0.0, None}
    assert any(row.recovery == 0.0 for row in rows)
    leaks = {"suppressed", "output-only", "not unlearned", "collapsed"}
    assert verdict.word not in leaks, verdict.reasons


def test_a_keyword_filter_hides_nothing_from_who_holds_the_weights(world, field, known):
    request, original, _ = world
    filtered = keyword_filter(original, request)
    for attack in ("benign", "lens"):
        theirs = run_attack(make_attack(attack, ATTACKS[attack]), filtered, field)
        assert [e["scores"] for e in theirs] == [e["scores"] for e in known["original"][attack]]
        assert all(e["details"]["attacked"] == "the model behind the wrapper" for e in theirs)


def test_a_gentle_refusal_falls_to_a_forced_start_or_to_further_training(world, field, known):
    request, original, _ = world
    refusing = gentle_refusal(original, request, 3e-3, 30)
    verdict, rows, forget = audited(refusing, world, field, known)
    assert forget < 0.3
    found = {row.attack: row.recovery for row in rows if row.worst}
    assert max(found["benign"] or 0.0, found["prefill"] or 0.0) > verdict.direct_residual + 0.3


def test_a_mask_in_the_last_block_leaves_all_that_is_below_it():
    request = make_request()
    fresh = make_subject(width=96)
    original = taught(fresh, (*request.forget, *request.retain), 240)
    oracle = taught(fresh, request.retain, 240)
    masked = last_block_mask(original, request.forget, request.retain)
    assert strength(masked, request.forget, "forget").value < 0.1
    assert strength(masked, request.retain, "retain").value > 0.95
    field = Field(request, peers={"original": lambda: original, "oracle": lambda: oracle})
    read = partial(run_attack, make_attack("lens", {"readers": ("logit",)}), field=field)
    theirs, before = read(subject=masked), read(subject=original)
    assert [e["scores"] for e in theirs] == [e["scores"] for e in before]  # to the bit: below nothing changed
    (depth,) = run_attack(make_attack("uds"), masked, field)
    left = depth["scores"]["forget"]["depth"]
    assert sum(left.values()) / len(left) > 0.15
