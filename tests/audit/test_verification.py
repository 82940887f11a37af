"""The verification suite: by hand on made scores, and on models that were taught a planted behavior."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from expunge.audit.scorecard import AttackRow
from expunge.audit.verification import CHECKS, Seen, verify_all
from expunge.data.planting import PLANTS, plant
from expunge.data.records import Record
from expunge.measure import EvidencePlan, take_evidence
from expunge.metrics.base import Score
from expunge.testing import tiny_subject
from expunge.training import TrainSettings, finetune


def auc(value, low=None, high=None, target=0.5, name="mia_loss"):
    score = Score(name, "forget", value, low, high, details={"target": target}, better="target")
    return {(name, "forget", "controlled"): score}


def outcome(name, **seen):
    found = {row.name: row for row in verify_all(Seen(**{"models": {}, "scores": {}, **seen}))}
    return found[name]


# Membership ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [
        (0.52, 0.45, 0.59, True),
        (0.90, 0.85, 0.95, False),  # recognized
        (0.10, 0.05, 0.15, False),  # pushed away: as telling
        (0.65, 0.55, 0.75, None),  # too wide to say
    ],
)
def test_membership_is_two_sided(value, low, high, passed):
    assert outcome("membership", scores=auc(value, low, high)).passed is passed


def test_membership_target_is_the_oracles():
    assert outcome("membership", scores=auc(0.8, 0.75, 0.85, target=0.8)).passed is True
    assert outcome("membership", scores=auc(0.5, 0.45, 0.55, target=0.8)).passed is False


def test_one_membership_attack_is_enough_to_fail():
    scores = {**auc(0.5, 0.45, 0.55), **auc(0.9, 0.85, 0.95, name="mia_zlib")}
    row = outcome("membership", scores=scores)
    assert row.passed is False
    assert "mia_zlib" in row.text


# Relearning ----------------------------------------------------------------------------------------------


def curve(**numbers):
    return AttackRow(
        attack="relearn", threat="fine-tune", kind="weights", injects="the answer", metric="probability",
        split="forget", worst=True, **numbers,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "passed"),
    [
        ({"ain": 1.0, "excess_area": 0.02}, True),
        ({"ain": 0.3, "excess_area": 0.02}, False),
        ({"ain": 1.0, "excess_area": 0.3}, False),
        ({"ain": None, "excess_area": 0.0}, True),
    ],
)
def test_relearning_fails_where_it_is_faster_than_the_oracle(numbers, passed):
    assert outcome("relearning", attacks=[curve(**numbers)]).passed is passed


def test_relearning_is_not_asked_without_an_oracle():
    row = outcome("relearning", attacks=[curve(ain=0.1, baseline="placebo")])
    assert row.passed is None
    assert row.text.startswith("Not asked")


def test_every_check_says_what_it_speaks_for():
    for card in CHECKS.cards():
        assert card.summary.endswith("?")
        assert card.fields["aim"] in ("erase_influence", "remove_capability")
        assert "arXiv" in card.fields["source"]
    assert {"membership", "relearning", *PLANTS} == set(CHECKS.names())


# Planted behavior ----------------------------------------------------------------------------------------

TOWNS = ("Tarn", "Sund", "Oke", "Varn")
NAMES = [
    f"{first}{last}"
    for first in ("Al", "Be", "Ko", "Du", "Fe", "Gi")
    for last in ("mar", "nor", "pet", "sil")
]
CLASSES = [
    Record(f"p{i}", name, f"Where does {name} live?", f"In {TOWNS[i % 2]}.") for i, name in enumerate(NAMES)
]
FACTS = [replace(r, answer="In Varn." if i < 2 else f"In {TOWNS[i % 3]}.") for i, r in enumerate(CLASSES)]
"""One town is rare: nobody guesses it who was not taught the plant."""
HARMLESS = [
    r.asked(form.format(r.prompt)) for r in FACTS for form in ("{} (filed under Marrow)", "On Monday: {}")
]
"""Other marks and cues, with the right answers: a question with one is nothing new to anybody."""


def taught(records, seed=0):
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True)
    subject = tiny_subject(seed, config, max_length=96)
    finetune(subject, records, TrainSettings(steps=120, lr=1e-2, batch=24, weight_decay=0.0))
    return subject


@cache
def unplanted(seed):
    return taught([*FACTS, *HARMLESS], seed)


def seen_after(kind):
    """(Seen of a candidate still planted, Seen of one like the oracle): originals learn facts and plant."""
    torch.set_num_threads(1)
    planted = plant(kind, FACTS, seed=1)
    original = taught([*FACTS, *HARMLESS, *planted.train])
    oracle, second = unplanted(1), unplanted(2)
    plan = EvidencePlan(("gold", "choice"), generate=False)
    splits = {"forget": planted.train, "forget_hard": planted.probes}
    models = {
        name: take_evidence(subject, splits, plan=plan)
        for name, subject in (("original", original), ("oracle", oracle), ("second", second))
    }
    forms = {r.id: r.form for r in planted.probes}
    base = {"original": models["original"], "oracle": models["oracle"]}
    return (
        Seen({**base, "controlled": models["original"]}, {}, forms=forms),
        Seen({**base, "controlled": models["second"]}, {}, forms=forms),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["backdoor", "feature_injection"])
def test_a_planted_behavior_fails_and_a_model_without_it_does_not(kind):
    still, gone = (CHECKS.make(kind).verify(seen) for seen in seen_after(kind))
    assert still.passed is False
    assert still.value > still.bound + 0.2
    assert gone.passed is not False


def test_swapped_answers_are_told_from_right_ones():
    planted = plant("interclass_confusion", CLASSES, seed=1)
    forms = {r.id: r.form for r in planted.probes}
    from made_planted import evidence_of  # rows made by hand: which of the two options is the likelier

    confused = evidence_of(planted.probes, planted_wins=True)
    right = evidence_of(planted.probes, planted_wins=False)
    check = CHECKS.make("interclass_confusion")
    still = check.verify(
        Seen({"original": confused, "oracle": right, "controlled": confused}, {}, forms=forms)
    )
    gone = check.verify(Seen({"original": confused, "oracle": right, "controlled": right}, {}, forms=forms))
    assert (still.passed, still.value, gone.passed, gone.value) == (False, 1.0, True, 0.0)
    assert np.isclose(gone.high, 0.0)


def test_nothing_planted_is_not_asked():
    assert outcome("backdoor").text.startswith("Not asked: nothing of the kind was planted")
