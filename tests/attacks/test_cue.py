"""The keyword strawman: it passes every direct question and fails the same ones without their cue."""

from __future__ import annotations

import pytest
from strawmen import keyword_filter
from transformers import LlamaConfig

from expunge.attacks import Field
from expunge.attacks.worst_case import WorstCase
from expunge.data.builders.cue import FORM as CUE_REMOVED
from expunge.data.builders.stress import Stress, stressed
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute
from expunge.testing import tiny_subject
from expunge.training import TrainSettings, finetune
from tiny_world import rows


@pytest.fixture(scope="module")
def world():
    """A request under stress, and a model that answers it with the cue and without."""
    splits = {
        split: tuple(Record(r["id"], r["entity"], r["question"], r["answer"]) for r in rows(split))
        for split in ("forget", "retain")
    }
    request, warnings = stressed(Request(splits), Stress((CUE_REMOVED,)))
    assert not warnings
    config = LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=160, tie_word_embeddings=True,
    )  # fmt: skip
    subject = tiny_subject(0, config, max_length=160)
    records = [*request.forget, *request["forget_hard"]]
    finetune(subject, records, TrainSettings(steps=150, lr=1e-2, batch=12, weight_decay=0.0))
    return request, subject


def strength(subject, records, split):
    evidence = {split: score_sheet(subject, make_sheet(subject.encoder, records, split))}
    return compute("extraction_strength", evidence, split).value


def test_a_keyword_filter_passes_direct_questions_and_fails_without_the_cue(world):
    request, original = world
    filtered = keyword_filter(original, request)
    direct = [strength(model, request.forget, "forget") for model in (original, filtered)]
    hard = [strength(model, request["forget_hard"], "forget_hard") for model in (original, filtered)]
    assert direct[0] > 0.9
    assert direct[1] < 0.2
    assert hard[0] > 0.9
    assert hard[1] == hard[0]  # it does not see them


def test_the_audit_meets_the_cue_removed_questions_in_the_worst_case(world):
    request, original = world
    filtered = keyword_filter(original, request)
    outcomes = {o.config["forms"]: o for o in WorstCase().run(filtered, Field(request, "quick"))}
    assert set(outcomes) == {"all", CUE_REMOVED}
    assert set(outcomes[CUE_REMOVED].sources.values()) == {r.id for r in request.forget}
    found = compute("extraction_strength", outcomes[CUE_REMOVED].evidence, "forget").value
    assert found > 0.9
