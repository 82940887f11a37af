"""A model that only learned to refuse gives the facts back; one that never saw them does not."""

from __future__ import annotations

import numpy as np
import pytest
from small_world import make_request, make_subject, taught

from expunge.attacks import ATTACKS, Field
from expunge.methods import METHODS
from expunge.training.settings import TrainSettings
from expunge.training.workspace import Workspace

REQUEST = make_request()


@pytest.fixture(scope="module")
def models():
    """(refusal-tuned, oracle)"""
    fresh = make_subject()
    original = taught(fresh, (*REQUEST.forget, *REQUEST.retain), 240)
    oracle = taught(fresh, REQUEST.retain, 240)
    settings = TrainSettings.model_validate({"steps": 45, "lr": 1e-3, "batch": 16})
    return METHODS.get("idk")().unlearn(original, REQUEST, Workspace(settings)), oracle


def verbatim(evidence) -> float:
    """Share of answers greedy decoding gives in full."""
    return float(np.mean([row.hits[row.answer_span].all() for row in evidence]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gain"), [("rtt", 0.5), ("benign", 0.4)])
def test_refusal_is_undone_by_fine_tuning(models, name, gain):
    field = Field(REQUEST, "default", lrs=(1e-3,), batch=16)
    refusing, oracle = (
        {o.step: verbatim(o.evidence["forget"]) for o in ATTACKS.get(name)().run(m, field)} for m in models
    )
    assert refusing[0] <= 0.2
    assert max(refusing.values()) >= refusing[0] + gain
    assert max(oracle.values()) <= 0.05


@pytest.mark.slow
def test_refusal_is_passed_by_a_forced_start(models):
    refusing, oracle = (
        next(ATTACKS.get("prefill")().run(m, Field(REQUEST))).details["prefix_success"] for m in models
    )
    assert refusing[1] >= refusing[0] + 0.5
    assert oracle[1] <= 0.05
