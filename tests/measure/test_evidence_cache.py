"""Measured evidence is kept under a key of all that shaped it, and read back instead of measured again."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from expunge.data.encoding import Encoder
from expunge.errors import ConfigError, Unsupported
from expunge.evidence import Row
from expunge.measure import EvidencePlan, take, take_evidence
from expunge.subjects import Subject, attach_lora, scale_lora
from tiny_models import make_subject, some_records

PLAN = EvidencePlan(("gold", "paraphrased_prompt"), max_new_tokens=4)


@pytest.fixture
def subject():
    return make_subject(spread=0.3)


def count_forwards(subject):
    calls = []
    subject.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def assert_same(first, second):
    assert first.meta == second.meta
    assert first.split == second.split
    for a, b in zip(first, second, strict=True):
        for field in fields(Row):
            left, right = getattr(a, field.name), getattr(b, field.name)
            if isinstance(left, np.ndarray):
                assert left.dtype == right.dtype, field.name
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right, field.name


@pytest.mark.parametrize("with_reference", [True, False])
def test_second_taking_reads_what_the_first_wrote(subject, tmp_path, with_reference):
    reference = make_subject(seed=4) if with_reference else None
    splits = {"forget": some_records(5), "holdout": some_records(3, entity="other"), "retain": []}
    first = take_evidence(subject, splits, tmp_path, plan=PLAN, reference=reference)
    assert list(first) == ["forget", "holdout"]
    assert sorted(p.name.partition("-")[0] for p in tmp_path.iterdir()) == ["forget", "holdout"]
    calls = count_forwards(subject)
    again = take_evidence(subject, splits, tmp_path, plan=PLAN, reference=reference)
    assert calls == []
    for split in first:
        assert_same(first[split], again[split])
    assert (first["forget"].gold["r0"].kl is None) == (reference is None)
    assert first["forget"].gold["r0"].generated is not None
    assert first["holdout"].gold["r0"].generated is None


def test_only_what_is_missing_is_measured(subject, tmp_path):
    splits = {"forget": some_records(4), "retain": some_records(4, entity="other")}
    take_evidence(subject, {"retain": splits["retain"]}, tmp_path, plan=PLAN)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    both = take_evidence(subject, splits, tmp_path, plan=PLAN)
    assert list(both) == ["forget", "retain"]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(list(tmp_path.iterdir())) == 2


def nudged(subject):
    other = subject.clone()
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1e-3
    return other


CHANGES = {
    "weights": lambda s, r, p: (nudged(s), r, p, None),
    "dtype": lambda s, r, p: (make_half(s), r, p, None),
    "context": lambda s, r, p: (
        Subject(s.model, s.tokenizer, Encoder(s.tokenizer, max_length=60)),
        r,
        p,
        None,
    ),
    "an answer": lambda s, r, p: (s, [r[0].answered("In Vess."), *r[1:]], p, None),
    "a choice": lambda s, r, p: (s, [replace(r[0], choices=("a", "b"), label=0), *r[1:]], p, None),
    "the order": lambda s, r, p: (s, r[::-1], p, None),
    "variants": lambda s, r, p: (s, r, replace(p, variants=("gold",)), None),
    "length of texts": lambda s, r, p: (s, r, replace(p, max_new_tokens=5), None),
    "no texts": lambda s, r, p: (s, r, replace(p, generate=False), None),
    "a reference": lambda s, r, p: (s, r, p, make_subject(seed=8)),
}


def make_half(subject):
    other = subject.clone()
    other.model.to(torch.bfloat16)
    return other


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_would_change_the_evidence_changes_its_key(what, subject, tmp_path):
    records = some_records(3)
    take_evidence(subject, {"forget": records}, tmp_path, plan=PLAN)
    other, asked, plan, reference = CHANGES[what](subject, records, PLAN)
    calls = count_forwards(other)
    take_evidence(other, {"forget": asked}, tmp_path, plan=plan, reference=reference)
    assert calls
    assert len(list(tmp_path.iterdir())) == 2


def test_scale_and_switch_of_an_adapter_change_the_key(subject, tmp_path):
    adapted = attach_lora(subject, rank=2)
    records = {"forget": some_records(2)}
    for factor in (1.0, 0.5, 1.0):
        scale_lora(adapted.model, factor)
        take_evidence(adapted, records, tmp_path, plan=PLAN)
    with adapted.model.disable_adapter():
        take_evidence(adapted, records, tmp_path, plan=PLAN)
    assert len(list(tmp_path.iterdir())) == 3


def test_split_name_is_part_of_the_key(subject, tmp_path):
    records = some_records(2)
    both = take_evidence(subject, {"forget": records, "neighbors": records}, tmp_path, plan=PLAN)
    assert len(list(tmp_path.iterdir())) == 2
    assert {row.split for row in both["neighbors"]} == {"neighbors"}


def test_meta_says_what_was_measured(subject, tmp_path):
    from expunge.subjects import fingerprint

    evidence = take_evidence(subject, {"forget": some_records(2)}, tmp_path, plan=PLAN)["forget"]
    assert evidence.meta["weights"] == fingerprint(subject.model)
    assert evidence.meta["encoder"] == subject.encoder.fingerprint()
    assert (evidence.meta["dtype"], evidence.meta["device"]) == ("float32", "cpu")
    assert evidence.meta["settings"]["max_new_tokens"] == 4


def test_interrupted_taking_keeps_whole_splits_only(subject, tmp_path, monkeypatch):
    splits = {"forget": some_records(2), "retain": some_records(2)}
    usual = take.score_sheet

    def dies(subject, sheet, **options):
        if sheet.split == "retain":
            raise KeyboardInterrupt
        return usual(subject, sheet, **options)

    monkeypatch.setattr(take, "score_sheet", dies)
    with pytest.raises(KeyboardInterrupt):
        take_evidence(subject, splits, tmp_path, plan=PLAN)
    assert [p.name.partition("-")[0] for p in tmp_path.iterdir()] == ["forget"]


def test_measuring_changes_nothing_in_the_model(subject):
    subject.model.train()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    take_evidence(subject, {"forget": some_records(3)}, plan=PLAN)
    assert subject.model.training
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert all(p.grad is None for p in subject.model.parameters())
    hooks = [m for m in subject.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_subject_that_only_scores_is_not_asked_to_write(subject):
    scorer = Subject(subject.model, subject.tokenizer, subject.encoder, "scorer", frozenset({"logprobs"}))
    evidence = take_evidence(scorer, {"forget": some_records(2)}, plan=PLAN)["forget"]
    assert all(row.generated is None for row in evidence)
    writer = Subject(subject.model, subject.tokenizer, subject.encoder, "writer", frozenset({"generate"}))
    with pytest.raises(Unsupported, match="logprobs"):
        take_evidence(writer, {"forget": some_records(2)}, plan=PLAN)


def test_unknown_variant_is_answered_with_the_nearest(subject):
    with pytest.raises(ConfigError, match="Did you mean perturbed"):
        take_evidence(subject, {"forget": some_records(1)}, plan=EvidencePlan(("perturbd",)))
