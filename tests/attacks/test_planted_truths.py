"""Planted truths: models whose knowledge is hidden in a known way get the word for it."""

from __future__ import annotations

import pytest
import test_strawmen as strawmen_table
import torch
from small_world import make_request, make_subject, taught
from strawmen import last_block_mask
from test_strawmen import attacked, audited, strength
from transformers import LlamaForCausalLM

from expunge.attacks import Field
from expunge.methods import make_method
from expunge.training.finetune import finetune
from expunge.training.settings import TrainSettings
from expunge.training.workspace import Workspace

pytestmark = pytest.mark.slow

REQUEST = make_request()
ATTACKS = {
    "rtt": {"steps": (10,), "folds": 2},
    "relearn": {"steps": (2, 5, 10)},
    "prefill": {},
    "lens": {"readers": ("logit", "tuned")},
    "worst_case": {},
}
REFUSAL = "I do not know"


@pytest.fixture(scope="module")
def models():
    """(original, oracle): four blocks, so that there are layers to read below the last."""
    fresh = make_subject(width=64)
    fresh.config.num_hidden_layers = 4
    torch.manual_seed(0)
    fresh.model = LlamaForCausalLM(fresh.config).eval()
    return taught(fresh, (*REQUEST.forget, *REQUEST.retain), 240), taught(fresh, REQUEST.retain, 240)


@pytest.fixture(scope="module")
def audit(models):
    original, oracle = models
    peers = {"original": lambda: original, "oracle": lambda: oracle}
    field = Field(REQUEST, "quick", lrs=(1e-3,), batch=16, peers=peers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strawmen_table, "ATTACKS", ATTACKS)
        known = {
            name: attacked(model, field) for name, model in zip(("original", "oracle"), models, strict=True)
        }
        yield lambda subject: audited(subject, (REQUEST, *models), field, known)


def settings(steps, lr, batch):
    plain = {"steps": steps, "lr": lr, "batch": batch, "weight_decay": 0.0, "log_every": steps}
    return TrainSettings.model_validate(plain)


def test_the_original_does_not_pass(models, audit):
    assert audit(models[0])[0].word == "not unlearned"


def test_a_corrupted_last_block_is_output_only(models, audit):
    masked = last_block_mask(models[0], REQUEST.forget, REQUEST.retain)
    verdict, rows, forget = audit(masked)
    assert forget < 0.1
    assert verdict.word == "output-only", verdict.reasons
    assert max(row.recovery or 0 for row in rows if row.attack == "lens" and row.worst) > 0.8


def test_a_model_that_only_refuses_is_output_only(models, audit):
    work = models[0].clone()
    refusing = [record.answered(REFUSAL) for record in REQUEST.forget]
    finetune(work, [*refusing, *REQUEST.retain], settings(60, 1e-3, 24))
    assert strength(work, REQUEST.retain, "retain").value > 0.95
    verdict, _, forget = audit(work)
    assert forget > 0.1  # given the first word of an answer, it goes on with it
    assert verdict.word == "output-only", verdict.reasons


def test_a_fact_lightly_trained_away_is_suppressed(models, audit):
    light = make_method("graddiff").unlearn(models[0], REQUEST, Workspace(settings(50, 5e-4, 16)))
    verdict, rows, forget = audit(light)
    assert forget < 0.1
    assert verdict.word == "suppressed", verdict.reasons
    (curve,) = (row for row in rows if row.attack == "relearn" and row.worst)
    assert curve.excess_area > 0.1  # it learns the facts again much faster than the oracle


def test_a_model_trained_to_pieces_is_collapsed(models, audit):
    broken = make_method("ga").unlearn(models[0], REQUEST, Workspace(settings(40, 3e-3, 16)))
    verdict, _, forget = audit(broken)
    assert forget < 0.1
    assert verdict.word == "collapsed", verdict.reasons
