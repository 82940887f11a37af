"""Edits: the new answer is there, on the edited questions, and the subject given is not touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.request import Request
from expunge.errors import DataError
from expunge.interventions import INTERVENTIONS, make_intervention
from expunge.interventions.base import edited
from expunge.measure import EvidencePlan, take_evidence
from expunge.metrics import compute
from expunge.subjects import fingerprint
from tiny_models import make_subject, some_records

EDITS = [c.name for c in INTERVENTIONS.cards() if c.fields["family"] == "edit"]
FAST = {"edit_finetune": {"lr": 3e-3, "epochs": 12}, "edit_lora": {"lr": 2e-2, "epochs": 12}}
SETTINGS = {**FAST, "edit_rank_one": {"settings": {"layer": 1, "prefixes": 1}}}
PLAN = EvidencePlan(("gold", "paraphrased_prompt", "refusal", "paraphrased_refusal"), generate=False)


def request() -> Request:
    """Three facts of three entities to edit, others to keep."""
    forget = tuple(some_records(6, entity="secret"))[::2]
    return Request({"forget": forget, "retain": tuple(some_records(8))}, refusals=("I do not know.",))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_writes_the_new_answer_and_leaves_the_given_subject(name):
    subject, asked = make_subject(), request()
    mark = fingerprint(subject.model)
    made = make_intervention(name, **SETTINGS[name]).apply(subject, asked)
    assert fingerprint(subject.model) == mark
    assert not made.adapter
    records = edited(asked, "refusal", 0)
    before, after = (take_evidence(s, {"forget": records}, plan=PLAN) for s in (subject, made))
    token = [compute("edit_efficacy", e, "forget", mode="token").value for e in (before, after)]
    assert token[1] > token[0] + 0.2
    assert compute("edit_efficacy", after, "forget").value == 1.0
    again = make_intervention(name, **SETTINGS[name]).apply(subject, asked)
    assert fingerprint(again.model) == fingerprint(made.model)


def test_a_rank_one_edit_changes_one_matrix():
    subject = make_subject()
    one = replace(request(), splits={**request().splits, "forget": request().forget[:1]})
    made = make_intervention("edit_rank_one", **SETTINGS["edit_rank_one"]).apply(subject, one)
    before, after = (dict(s.model.named_parameters()) for s in (subject, made))
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]
    change = (after[changed[0]] - before[changed[0]]).detach().double()
    values = torch.linalg.svdvals(change)
    assert values[1] < 1e-4 * values[0]


def test_the_new_answer_is_the_records_own_refusal_or_an_alternate():
    forget = tuple(replace(r, alternates=("In Moss.",)) for r in request().forget)
    asked = replace(request(), splits={"forget": forget})
    assert {r.refusal for r in edited(asked, "refusal", 0)} == {"I do not know."}
    assert {r.refusal for r in edited(asked, "alternate", 0)} == {"In Moss."}
    assert [r.answer for r in edited(asked, "refusal", 0)] == [r.answer for r in forget]
    with pytest.raises(DataError, match="alternates"):
        edited(request(), "alternate", 0)


def test_the_new_answer_is_asked_on_the_paraphrased_prompt():
    subject = make_subject()
    record = edited(request(), "refusal", 0)[0]
    evidence = take_evidence(subject, {"forget": [record]}, plan=PLAN)["forget"]
    row = evidence.of("paraphrased_refusal")[record.id][0]
    plain = record.asked(record.paraphrased_prompts[0]).answered("I do not know.")
    slow = take_evidence(subject, {"forget": [plain]}, plan=EvidencePlan(("gold",), generate=False))
    np.testing.assert_allclose(row.logprobs, slow["forget"].gold[record.id].logprobs, atol=1e-5)
    assert (row.answer, row.variant) == ("I do not know.", "paraphrased_refusal:0")
    bare = replace(record, refusal=None)
    assert not take_evidence(subject, {"forget": [bare]}, plan=PLAN)["forget"].of("paraphrased_refusal")
