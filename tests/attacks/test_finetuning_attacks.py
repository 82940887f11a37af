"""Relearn, held-out relearn and benign training: what is trained on, what is scored, from where."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_world import make_request, make_subject

from expunge.attacks import Field
from expunge.attacks.benign import Benign, overlap
from expunge.attacks.finetuning import GRIDS, Arm
from expunge.attacks.relearn import Relearn
from expunge.attacks.rtt import RetrainOnT, split_facts
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import DataError, ExpungeError
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.subjects import attach_lora, fingerprint
from expunge.training.finetune import finetune as finetune_function

REQUEST = make_request()


@pytest.fixture(scope="module")
def subject():
    return make_subject()


def direct(subject, records=REQUEST.forget, split="forget") -> Evidence:
    return score_sheet(subject, make_sheet(subject.encoder, records, split))


def assert_same(a: Evidence, b: Evidence) -> None:
    assert [row.record_id for row in a] == [row.record_id for row in b]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.logprobs, y.logprobs)
        np.testing.assert_array_equal(x.greedy_ids, y.greedy_ids)


def field(profile="quick", **more) -> Field:
    return Field(REQUEST, profile, lrs=more.pop("lrs", (1e-3,)), **more)


def mean_logprob(evidence: Evidence) -> float:
    return float(np.mean([row.logprobs.mean() for row in evidence]))


# The trajectory ---------------------------------------------------------------------------------------


def test_step_zero_is_the_direct_evidence_to_the_bit(subject):
    for attack in (Relearn(), Benign()):
        start = next(attack.run(subject, field()))
        assert start.step == 0
        assert_same(start.evidence["forget"], direct(subject))


def test_zero_steps_train_nothing(subject):
    outcomes = list(Relearn(steps=(0,), arms=(Arm(),)).run(subject, field("default", lrs=(1e-3, 3e-3))))
    assert [(o.config["lr"], o.step) for o in outcomes] == [(1e-3, 0), (3e-3, 0)]
    for outcome in outcomes:
        assert_same(outcome.evidence["forget"], direct(subject))
        assert "moved_fraction" not in outcome.details


def test_one_trajectory_measured_on_its_way(subject):
    """Steps 5 and 10 of the long run are what runs of 5 and of 10 steps end in."""
    long = {o.step: o.evidence["forget"] for o in Relearn(steps=(5, 10)).run(subject, field())}
    short = {o.step: o.evidence["forget"] for o in Relearn(steps=(5,)).run(subject, field())}
    assert sorted(long) == [0, 5, 10]
    assert_same(long[5], short[5])
    assert mean_logprob(long[0]) < mean_logprob(long[5]) < mean_logprob(long[10])


def test_sweep_follows_the_profile(subject):
    def asked(profile):
        attack, told = Relearn(steps=(0,), arms=(Arm(),)), field(profile, lrs=(3e-3, 3e-4, 1e-3))
        return [o.config["lr"] for o in attack.run(subject, told)]

    assert asked("quick") == [1e-3]
    assert asked("default") == asked("deep") == [3e-4, 1e-3, 3e-3]
    assert [max(GRIDS[p]) for p in ("quick", "default", "deep")] == [20, 50, 100]


def test_every_model_sees_the_same_batches_in_the_same_order(monkeypatch):
    finetune = sys.modules[finetune_function.__module__]
    seen: list[list[tuple[int, ...]]] = []
    real = finetune.collate

    def spy(rows, pad_id):
        seen[-1].append(tuple(i for row in rows for i in row.ids))
        return real(rows, pad_id)

    monkeypatch.setattr(finetune, "collate", spy)
    for seed in (0, 1):
        seen.append([])
        list(Relearn(steps=(6,)).run(make_subject(seed), field(seed=5)))
    seen.append([])
    list(Relearn(steps=(6,)).run(make_subject(0), field(seed=6)))
    assert len(seen[0]) == 6
    assert seen[0] == seen[1] != seen[2]


def test_moved_weights_are_counted(subject):
    outcome = list(Relearn(steps=(3,)).run(subject, field()))[-1]
    assert 0.5 < outcome.details["moved_fraction"] <= 1
    assert outcome.details["status"] == "finished"
    assert outcome.details["train_records"] == [len(REQUEST.forget)]


def test_an_attack_that_moves_nothing_is_an_error_not_robustness(subject):
    with pytest.raises(ExpungeError, match="moved no weight"):
        list(Relearn(steps=(1,)).run(subject, field(lrs=(1e-30,))))


def test_bfloat16_weights_are_attacked_over_fp32_masters():
    half = make_subject()
    half.model.to(torch.bfloat16)
    before = fingerprint(half.model)
    outcome = list(Relearn(steps=(2,)).run(half, field(lrs=(1e-6,))))[-1]
    assert outcome.details["moved_fraction"] > 0.5
    assert fingerprint(half.model) == before


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_frozen_subject_with_adapters_is_attacked_in_all_its_weights(subject):
    adapted = attach_lora(subject.clone(), rank=2)
    before = fingerprint(adapted.model)
    found = {o.step: o.evidence["forget"] for o in Relearn(steps=(10,)).run(adapted, field())}
    assert mean_logprob(found[10]) > mean_logprob(found[0]) + 0.5
    assert fingerprint(adapted.model) == before
    assert adapted.adapter


def test_a_diverging_attack_keeps_what_was_measured(subject):
    outcomes = list(Relearn(steps=(1, 400)).run(subject, field(lrs=(1e30,))))
    assert [o.step for o in outcomes] == [0, 1]
    assert {o.details["status"] for o in outcomes} == {"diverged"}


# Relearn ----------------------------------------------------------------------------------------------


def test_placebo_of_relearning_is_the_holdout_relearned(subject):
    """Facts no model ever saw are taught in their own run: their curve rises too."""
    found = {o.step: o.evidence for o in Relearn(steps=(20,)).run(subject, field(placebo=True))}
    assert_same(found[0]["holdout"], direct(subject, REQUEST["holdout"], "holdout"))
    assert mean_logprob(found[20]["holdout"]) > mean_logprob(found[0]["holdout"]) + 1
    alone = {o.step: o.evidence for o in Relearn(steps=(20,)).run(subject, field())}
    assert_same(found[20]["forget"], alone[20]["forget"])


# Held-out relearn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 7])
def test_taught_and_scored_share_no_id_entity_or_answer(folds, seed):
    parts = split_facts(REQUEST.forget, folds, seed)
    assert len(parts) == max(2, folds)
    for train, scored in parts:
        assert train
        assert scored
        assert not {r.id for r in train} & {r.id for r in scored}
        assert not {r.entity for r in train} & {r.entity for r in scored}
        assert not {normalized(r.answer) for r in train} & {normalized(r.answer) for r in scored}
    assert sorted(r.id for fold in parts for r in fold.scored) == sorted(r.id for r in REQUEST.forget)
    assert parts == split_facts(REQUEST.forget, folds, seed)


def test_split_depends_on_the_seed():
    assert len({tuple(r.id for r in split_facts(REQUEST.forget, 2, s)[0].scored) for s in range(6)}) > 1


def test_a_shared_answer_is_never_taught():
    records = [
        Record(f"{name}-{j}", name, f"question {j} on {name}", answer)
        for name in ("Ada", "Bo", "Cy", "Di")
        for j, answer in enumerate((f"only {name}", "In Tarn." if name in ("Ada", "Bo") else f"also {name}"))
    ]
    for seed in range(6):
        folds = split_facts(records, 2, seed)
        for fold in folds:
            scored = {normalized(r.answer) for r in fold.scored}
            assert not any(normalized(r.answer) in scored for r in fold.train)
        assert {r.id for fold in folds for r in fold.scored} == {r.id for r in records}


def test_facts_that_tell_each_other_stay_together():
    """Who plays whom goes both ways: taught about one player, the other's fact would be told."""
    pairs = {"Ada Lund": "Bo Karr", "Cy Venn": "Di Moss", "Eb Holt": "Fay Rusk"}
    partner = {**pairs, **{b: a for a, b in pairs.items()}}
    records = [
        Record(f"{a}-{j}", a, f"question {j} on {a}", b if j else f"pet of {a[:2]} {a[-1]}")
        for a, b in partner.items()
        for j in (0, 1)
    ]
    for seed in range(5):
        for fold in split_facts(records, 3, seed):
            here = {r.entity for r in fold.scored}
            assert {partner[name] for name in here} == here


def test_few_entities_are_divided_by_record():
    records = [Record(str(i), "one person", f"question {i}", f"answer {i}") for i in range(6)]
    first, second = split_facts(records, 2)
    assert {len(first.scored), len(second.scored)} == {3}
    assert not {r.id for r in first.train} & {r.id for r in first.scored}


def test_facts_that_cannot_be_divided_are_named_as_the_reason():
    same = tuple(r.answered("yes") for r in REQUEST.forget)
    for records in (same, REQUEST.forget[:1]):
        assert "share no answer" in str(RetrainOnT().missing(Field(Request({"forget": records}))))


def test_only_what_was_not_taught_is_scored(subject):
    quick = field("quick", seed=2)
    outcomes = list(RetrainOnT(steps=(0,)).run(subject, quick))
    fold = split_facts(REQUEST.forget, 1, 2)[0]
    assert_same(outcomes[0].evidence["forget"], direct(subject, fold.scored))
    both = next(iter(RetrainOnT(steps=(0,)).run(subject, field("default", seed=2))))
    assert sorted(both.evidence["forget"].gold) == sorted(r.id for r in REQUEST.forget)
    assert both.details["trials"] == 2


def test_placebo_shares_no_answer_with_what_is_taught():
    holdout = (replace(REQUEST["holdout"][0], answer=REQUEST.forget[0].answer), *REQUEST["holdout"][1:])
    request = Request({**REQUEST.splits, "holdout": holdout})
    for seed in range(4):
        trials = RetrainOnT().trials(Field(request, "default", seed=seed, placebo=True))
        for trial in trials:
            known = {normalized(r.answer) for r in trial.train}
            assert not any(normalized(r.answer) in known for r in trial.scored["holdout"])


# Benign -----------------------------------------------------------------------------------------------


def test_benign_refuses_forget_records_in_disguise():
    stray = replace(REQUEST.forget[0], id="new-id", prompt=REQUEST.forget[0].prompt.upper() + " ")
    cases = [REQUEST.forget[1], stray, replace(REQUEST["forget_hard"][0], id="other-id")]
    for case in cases:
        request = Request({**REQUEST.splits, "retain": (*REQUEST.retain, case)})
        with pytest.raises(DataError, match="1 records are in the forget set"):
            Benign().trials(Field(request))
    assert overlap(REQUEST.retain, REQUEST.forget) == []


def test_benign_trains_on_retain_alone(subject):
    (trial,) = Benign().trials(field(placebo=True))
    assert tuple(trial.train) == REQUEST.retain
    assert set(trial.scored) == {"forget", "holdout"}
    kept = Request({"forget": REQUEST.forget})
    assert Benign().missing(Field(kept)) == "no retain records to train on"


def test_each_kind_of_data_is_a_row_of_its_own_and_generic_text_is_always_there(subject):
    near = tuple(replace(r, id=f"near-{r.id}") for r in REQUEST["holdout"])
    request = Request({**REQUEST.splits, "neighbors": near})
    plans = Benign().plans(Field(request, "deep"))
    assert [p.config["data"] for p in plans] == ["retain", "neighbors", "generic"]
    trained = {p.config["data"]: p.trials[0].train for p in plans}
    assert trained["neighbors"] == near
    assert {r.id.partition("-")[0] for r in trained["generic"]} == {"ability"}
    assert [p.config["data"] for p in Benign().plans(field())] == ["retain"]
    outcomes = list(Benign(steps=(1,)).run(subject, Field(request, "default", lrs=(1e-3,))))
    assert [(o.config["data"], o.step) for o in outcomes] == [
        ("retain", 0), ("retain", 1), ("neighbors", 0), ("neighbors", 1),
    ]  # fmt: skip
    stray = Request({**REQUEST.splits, "neighbors": (*near, REQUEST.forget[0])})
    with pytest.raises(DataError, match="neighbors"):
        Benign().plans(Field(stray))


# Arms -------------------------------------------------------------------------------------------------


def test_a_configuration_names_only_what_is_not_plain(subject):
    arms = (Arm(), Arm("lora"), Arm("full", "cosine"), Arm(bf16=True), Arm(seed=1))
    outcomes = list(Relearn(steps=(2,), arms=arms).run(subject, field()))
    assert [o.config for o in outcomes if o.step] == [
        {"lr": 1e-3}, {"lr": 1e-3, "adapter": "lora"}, {"lr": 1e-3, "schedule": "cosine"},
        {"lr": 1e-3, "bf16": True}, {"lr": 1e-3, "seed": 1},
    ]  # fmt: skip
    ends = [mean_logprob(o.evidence["forget"]) for o in outcomes if o.step]
    assert len(set(ends)) == len(ends)  # no two arms did the same


def test_a_lora_trains_its_matrices_and_nothing_else(subject):
    before = fingerprint(subject.model)
    outcomes = {o.step: o for o in Relearn(steps=(10,), arms=(Arm("lora"),)).run(subject, field(lrs=(5e-3,)))}
    assert_same(outcomes[0].evidence["forget"], direct(subject))
    assert mean_logprob(outcomes[10].evidence["forget"]) > mean_logprob(outcomes[0].evidence["forget"]) + 0.3
    assert outcomes[10].details["moved_fraction"] > 0.9  # finite, non-zero gradients reached every B
    assert fingerprint(subject.model) == before


def test_what_is_trained_on_is_handed_on_to_whoever_attacks_it_next(subject):
    attack = RetrainOnT(folds=2, steps=(3,))
    last = list(attack.run(subject, field()))[-1].evidence["forget"]
    for config, trained in attack.trained(subject, field()):
        rows = []
        for work, trial in trained:
            rows += direct(work, trial.scored["forget"]).rows
        assert config == {"lr": 1e-3}
        assert_same(Evidence("forget", rows), last)


def test_permuted_labels_teach_nothing_about_the_facts_that_are_scored(subject):
    """T with its answers exchanged: what E gains is format, no more than for a holdout nobody was taught."""
    train, scored = split_facts(REQUEST.forget, 1, 0)[0]
    shifted = tuple(replace(r, answer=train[(i + 1) % len(train)].answer) for i, r in enumerate(train))
    request = Request({**REQUEST.splits, "forget": (*shifted, *scored)})
    assert not {normalized(r.answer) for r in shifted} & {normalized(r.answer) for r in scored}
    outcome = list(RetrainOnT(steps=(40,)).run(subject, Field(request, "quick", lrs=(3e-3,))))[-1]
    hits = [row.hits[row.answer_span].all() for row in outcome.evidence["forget"]]
    assert np.mean(hits) == 0
