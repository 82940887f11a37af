"""A whole run of an exact method: its certificate reaches the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import expunge
from expunge.audit.facts import certified
from tiny_world import recipe

pytestmark = pytest.mark.slow

TRAIN = {"steps": 250, "lr": 1e-2, "batch": 24, "weight_decay": 0.0}


def test_retraining_that_was_replayed_is_exact(world):
    method = {"name": "retrain", "replay": True}
    made = recipe(method=method, train=TRAIN, audit=["quantize"], output="runs/exact")
    card = expunge.run(made).scorecard
    assert card.verdict.word == "exact"
    assert not any("certificate" in limit for limit in card.limits)
    told = card.models["unlearned"]["certificate"]
    assert told["fingerprint"] == card.models["controlled"]["fingerprint"]


def test_mixed_with_the_original_it_is_not(world):
    """Too few steps for the bar, so control mixes the original back in."""
    made = recipe(
        method={"name": "sharded_lora", "shards": 2}, train={**TRAIN, "steps": 20}, audit=["quantize"],
        output="runs/mixed",
    )  # fmt: skip
    card = expunge.run(made).scorecard
    facts = json.loads(Path("runs/mixed/unlearn/facts.json").read_text(encoding="utf-8"))
    assert facts["certificate"]["exact"]
    assert facts["certificate"]["verified"]
    assert card.control[0].alpha < 1
    assert certified(card.models) is None
    assert card.verdict.word != "exact"
    assert any("other weights than the certified" in limit for limit in card.limits)
