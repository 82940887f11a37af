"""What every registered attack owes the audit, plug-ins included."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from small_world import make_request, make_subject

from expunge.attacks import ATTACKS, Field, Outcome
from expunge.data.request import Request
from expunge.evidence import Evidence
from expunge.subjects import fingerprint

THREATS = {"query", "logprob", "fine-tune", "white-box"}
KINDS = {"weights", "prompts", "decoding", "read-out"}
INJECTS = {"nothing", "format", "related facts", "the answer"}


@pytest.fixture(scope="module")
def subject():
    return make_subject()


PEERS = {name: (lambda seed=seed: make_subject(seed)) for seed, name in enumerate(("original", "oracle"), 1)}


def run(name: str, subject, **more) -> list[Outcome]:
    field = Field(make_request(), "quick", lrs=(1e-3,), peers=PEERS, **more)
    attack = ATTACKS.get(name)()
    assert attack.missing(field) is None
    return list(attack.run(subject, field))


def splits(outcome: Outcome) -> set[str]:
    return {*outcome.evidence, *outcome.values}


def leaking(name: str, outcomes: list[Outcome]) -> list[Outcome]:
    """Without what stands aside, which may score other splits and go below 0."""
    return [] if attack_card(name).get("aside") else [o for o in outcomes if not o.aside]


def attack_card(name: str) -> dict:
    return ATTACKS.card(name).fields


def same(a: Evidence, b: Evidence) -> bool:
    return all(
        x.record_id == y.record_id and np.array_equal(x.logprobs, y.logprobs)
        for x, y in zip(a, b, strict=True)
    )


def test_tier_one_of_this_release_is_there():
    assert {"relearn", "rtt", "benign", "quantize", "worst_case", "prefill"} <= set(ATTACKS.names())


@pytest.mark.parametrize("card", ATTACKS.cards(), ids=lambda card: card.name)
def test_card_says_threat_kind_injection_tier_and_source(card):
    assert card.fields["threat"] in THREATS
    assert card.fields["kind"] in KINDS
    assert card.fields["injects"] in INJECTS
    assert card.fields["tier"] in (1, 2, 3)
    assert "arXiv" in card.fields["source"]
    assert card.summary.endswith((".", ":"))


@pytest.mark.parametrize("name", ATTACKS.names())
def test_is_a_frozen_dataclass_of_its_settings(name):
    attack = ATTACKS.get(name)()
    assert dataclasses.is_dataclass(attack)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.anything = 1


@pytest.mark.parametrize("name", ATTACKS.names())
def test_scores_forget_and_placebo_and_leaves_the_subject_alone(name, subject):
    before, mode = fingerprint(subject.model), subject.model.training
    outcomes = run(name, subject, placebo=True)
    assert outcomes
    known = {r.id for r in make_request().forget}
    for outcome in leaking(name, outcomes):
        assert {"forget"} <= splits(outcome) <= {"forget", "holdout"}
        for forget in [e for split, e in outcome.evidence.items() if split == "forget"]:
            assert forget.split == "forget"
            assert {outcome.sources.get(row.record_id, row.record_id) for row in forget} <= known
            assert all(np.isfinite(row.logprobs).all() for row in forget)
        if outcome.values:
            assert outcome.metric
            assert all(0 <= v <= 1 + 1e-9 for table in outcome.values.values() for v in table.values())
    if leaking(name, outcomes) and "oracle" not in attack_card(name).get("peers", ()):
        # who needs the oracle needs no placebo
        assert any("holdout" in splits(outcome) for outcome in outcomes)
    assert fingerprint(subject.model) == before
    assert subject.model.training == mode


@pytest.mark.parametrize("name", ATTACKS.names())
def test_no_placebo_unless_asked_for(name, subject):
    assert all(splits(outcome) == {"forget"} for outcome in leaking(name, run(name, subject)))


@pytest.mark.parametrize("name", ATTACKS.names())
def test_configurations_are_told_apart_and_repeat_to_the_bit(name, subject):
    first, second = run(name, subject, seed=3), run(name, subject, seed=3)
    keys = [(repr(dict(o.config)), o.step) for o in first]
    assert len(set(keys)) == len(keys)
    assert keys == [(repr(dict(o.config)), o.step) for o in second]
    for a, b in zip(first, second, strict=True):
        assert a.values == b.values
        assert a.evidence.keys() == b.evidence.keys()
        assert all(same(a.evidence[split], b.evidence[split]) for split in a.evidence)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_what_is_missing_is_said_before_anything_runs(name):
    alike = (dataclasses.replace(r, answer="same", paraphrased_prompts=()) for r in make_request().forget)
    reason = ATTACKS.get(name)().missing(Field(Request({"forget": tuple(alike)}), "quick"))
    assert reason is None or (reason and not reason.endswith("."))
    if name in ("benign", "rtt", "worst_case"):
        assert reason


def test_cards_are_read_without_torch():
    code = (
        "import sys; from expunge.attacks import ATTACKS; assert len(ATTACKS.cards()) >= 6; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
