"""Inference-time methods: what each states about itself, checked on models that know something."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.batching import collate
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.errors import DataError, ModelError, Unsupported
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.generate import greedy_text
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods import METHODS, make_method
from expunge.methods.inference.eco import search
from expunge.subjects import Wrapped, save_subject
from expunge.subjects.subject import WEIGHTS
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune
from expunge.training.assistants import UniformRetain, shallow
from tiny_models import FAMILIES, make_subject, some_records

WRAPPERS = [card.name for card in METHODS.cards() if card.fields["family"] == "inference"]
SETTINGS = TrainSettings(steps=40, lr=5e-3, batch=6, warmup=0.0)


@pytest.fixture(scope="module")
def world():
    """A tiny model that knows forget and retain by heart, and the request; neighbors are retain-like."""
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    settings = TrainSettings(steps=70, lr=1e-2, batch=12, warmup=0.05, schedule="cosine")
    finetune(subject, [*request.forget, *request.retain], settings)
    return subject, replace(request, splits={**request.splits, "neighbors": request["calibration"]})


def made(name, world, settings=SETTINGS, **hyper):
    subject, request = world
    workspace = Workspace(settings)
    return make_method(name, **hyper).unlearn(subject, request, workspace), workspace


@pytest.fixture(scope="module")
def results(world):
    """Every method of the family once."""
    hyper = {"eco": {"target": 1.5}}  # here even a wrong prompt leaves most tokens of an answer likely
    return {name: made(name, world, **hyper.get(name, {})) for name in WRAPPERS}


def nll(subject, records):
    rows = list(score_sheet(subject, make_sheet(subject.encoder, records, "forget")))
    return float(-np.concatenate([row.logprobs for row in rows]).mean())


def batch_of(subject, records):
    return collate([subject.encoder.encode(r) for r in records], subject.encoder.pad_id)


# All of them ------------------------------------------------------------------------------------------


def test_these_are_the_ones():
    assert sorted(WRAPPERS) == [
        "eco", "guardrail", "icul", "keyword_filter", "offset", "ucd", "uld", "whp_decode",
    ]  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_weights_stay_and_still_hold_the_fact(name, results, world):
    subject, request = world
    wrapped, _ = results[name]
    assert isinstance(wrapped, Wrapped)
    assert wrapped.unwrapped().fingerprint() == subject.fingerprint()
    base = list(score_sheet(wrapped.unwrapped(), make_sheet(subject.encoder, request.forget, "forget")))
    assert np.concatenate([row.hits for row in base]).mean() > 0.9


@pytest.mark.parametrize("name", WRAPPERS)
def test_off_is_the_original(name, results, world):
    subject, request = world
    batch = batch_of(subject, request.forget)
    assert torch.equal(results[name][0].at(0.0).logits(batch), subject.logits(batch))


@pytest.mark.parametrize("name", [n for n in WRAPPERS if n != "icul"])
def test_forget_answers_lose_likelihood_and_the_path_has_no_way_back(name, results, world):
    subject, request = world
    wrapped = results[name][0]
    values = [nll(wrapped.at(s), request.forget) for s in (0.0, 0.5, 1.0)]
    assert values[0] == pytest.approx(nll(subject, request.forget))
    assert values[2] > values[0] + 0.2
    assert values[0] - 1e-6 <= values[1] <= values[2] + 1e-6


@pytest.mark.parametrize("name", WRAPPERS)
def test_access_is_what_the_card_says(name, world):
    subject, request = world
    access = METHODS.card(name).fields["access"]
    enough = {"logits": {"generate", "logprobs", "hidden"}, "text": {"generate"}}[access]
    limited = subject.clone().limited(frozenset(enough))
    folders = {"uld": 1, "whp_decode": 1, "offset": 2, "ucd": 2}
    if name in folders:
        with pytest.raises(Unsupported, match="assistant"):
            make_method(name).unlearn(limited, request, Workspace(SETTINGS))
        return
    assert make_method(name).unlearn(limited, request, Workspace(SETTINGS)).can <= enough


@pytest.mark.parametrize("name", ["npo", "rmu", "retrain"])
def test_a_black_box_has_no_weights_to_change(name, world):
    subject, request = world
    limited = subject.clone().limited(frozenset({"generate", "logprobs"}))
    with pytest.raises(Unsupported, match=f"the method {name} needs weights") as caught:
        make_method(name).unlearn(limited, request, Workspace(SETTINGS))
    assert caught.value.exit_code == 2


def test_logits_are_more_than_text(world):
    subject, request = world
    limited = subject.clone().limited(frozenset({"generate"}))
    with pytest.raises(Unsupported, match="the method ucd needs logprobs"):
        make_method("ucd").unlearn(limited, request, Workspace(SETTINGS))
    with pytest.raises(Unsupported, match="scoring answers needs logprobs"):
        take_evidence(limited, {"forget": request.forget}, plan=EvidencePlan(("gold",)))


def test_what_is_unlearned_can_be_wrapped_and_a_wrapped_one_not_unlearned(results, world):
    subject, request = world
    twice = make_method("keyword_filter").unlearn(results["uld"][0], request, Workspace(SETTINGS))
    assert twice.unwrapped() is subject
    with pytest.raises(Unsupported, match="weights"):
        make_method("npo").unlearn(twice, request, Workspace(SETTINGS))
    assert subject.can == WEIGHTS


# Contrast and its assistants --------------------------------------------------------------------------


def test_the_blend_is_the_rule_with_the_assistants(results, world):
    subject, request = world
    batch = batch_of(subject, request.forget)
    z = subject.logits(batch)
    for name, w in (("offset", 1.0), ("ucd", -1.0)):
        wrapped = results[name][0]
        gap = wrapped.parts["plus"].logits(batch) - wrapped.parts["minus"].logits(batch)
        found, wanted = wrapped.logits(batch), z + w * gap
        kept = wrapped.plausible(z) if wrapped.rule.ratio else torch.ones_like(z, dtype=torch.bool)
        assert torch.allclose(found[kept], wanted[kept], atol=1e-5)
    whp = results["whp_decode"][0]
    assert torch.allclose(
        whp.logits(batch), z - (whp.parts["plus"].logits(batch) - z).clamp(min=0), atol=1e-5
    )
    uld = results["uld"][0]
    kept = uld.plausible(z)
    assert torch.allclose(uld.logits(batch)[kept], (z - uld.parts["plus"].logits(batch))[kept], atol=1e-5)


def test_the_plausible_set_has_at_least_the_share_of_the_vocabulary(results, world):
    subject, request = world
    z = subject.logits(batch_of(subject, request.forget))
    uld = results["uld"][0]
    assert uld.rule.at_least == int(0.1 * subject.vocab_size)
    assert (uld.plausible(z).sum(-1) >= uld.rule.at_least).all()
    bare = made("uld", world, at_least=1, plus=None, settings=replace_steps(1))[0]
    assert bare.rule.at_least == 1
    sure = z.softmax(-1).amax(-1) > 1 / 1.1
    assert sure.any()
    assert (bare.plausible(z)[sure].sum(-1) == 1).all(), "without it, a memorized token has no rival"


def replace_steps(steps):
    return SETTINGS.model_copy(update={"steps": steps})


def test_the_assistant_of_uld_knows_forget_and_little_of_retain(world):
    subject, request = world
    insider = made("uld", world, settings=SETTINGS.model_copy(update={"steps": 150}))[0].parts["plus"]
    assert nll(insider, request.forget) < 1.0
    assert nll(insider, request.retain) > 2.0
    assert nll(subject, request.retain) < 1.0


def test_uniform_retain_is_the_kl_from_uniform():
    class Retain:
        logits = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]])

        def mean_rows(self, values):
            return values

    p = Retain.logits.softmax(-1)
    by_hand = (0.25 * (math.log(0.25) - p.log())).sum(-1)
    assert torch.allclose(UniformRetain().loss(Retain()), by_hand, atol=1e-6)
    assert by_hand[1] == pytest.approx(0.0, abs=1e-6)


def test_assistants_come_from_folders(results, world, tmp_path):
    first = results["ucd"][0]
    folders = {n: str(save_subject(part, tmp_path / n)) for n, part in first.parts.items()}
    second, workspace = made("ucd", world, **folders)
    assert workspace.result is None, "nothing was trained"
    assert second.fingerprint() == first.fingerprint()


def test_an_assistant_of_another_vocabulary_is_refused(world, tmp_path):
    folder = save_subject(make_subject("llama"), tmp_path / "stranger")
    with pytest.raises(ModelError, match="vocabulary"):
        made("uld", world, plus=str(folder))


def test_training_an_assistant_is_reported(results):
    one, two = results["whp_decode"][1].result, results["ucd"][1].result
    assert one.steps == 40
    assert two.steps == 80
    assert two.tokens > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_is_the_first_blocks(family):
    whole = make_subject(family)
    cut = shallow(whole, 2)
    batch = batch_of(whole, some_records(3))
    assert cut.config.get_text_config().num_hidden_layers == 2
    states, cut_states = (
        s.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        for s in (whole, cut)
    )
    assert torch.equal(states.hidden_states[1], cut_states.hidden_states[1])
    assert shallow(whole, 3).fingerprint() == whole.fingerprint() == shallow(whole, 99).fingerprint()


# Guardrail --------------------------------------------------------------------------------------------


def test_it_refuses_what_it_must_and_says_whom_else(results, world):
    subject, request = world
    wrapped, workspace = results["guardrail"]
    assert workspace.facts["true_positive_rate"] == 1.0
    rates = workspace.facts["false_positive_rate"]
    assert set(rates) == {"retain", "neighbors"}
    rows = {s: [subject.encoder.encode(r) for r in request[s]] for s in rates}
    for split, encoded in rows.items():
        refused = [wrapped.refuses(e.ids[: e.num_prompt], e.answer_ids) for e in encoded]
        assert rates[split] == sum(refused) / len(refused)
    assert rates["retain"] == 0.0


def test_unflagged_prompts_keep_their_bits(results, world):
    subject, request = world
    batch = batch_of(subject, [*request.retain, *request.forget])
    kept = batch.row < len(request.retain)
    for name in ("guardrail", "keyword_filter"):
        found, plain = results[name][0].logits(batch), subject.logits(batch)
        assert torch.equal(found[kept], plain[kept])
        assert not torch.equal(found[~kept], plain[~kept])


def test_the_keyword_filter_is_a_strawman(results, world):
    subject, request = world
    wrapped, record = results["keyword_filter"][0], request.forget[0]
    hidden = record.asked(f"Job of {record.entity[:-1]}?")
    asked = [subject.encoder.prompt_ids(r) for r in (record, hidden)]
    assert [wrapped.refuses(ids) for ids in asked] == [True, False]
    assert wrapped.rule.output is None


def test_refusals_come_from_the_request(world):
    subject, request = world
    asked = [subject.encoder.prompt_ids(r) for r in request.forget[:2]]
    own = replace(request, refusals=("Ask someone else.",))
    for method, texts in (({}, "Ask someone else."), ({"refusal": "No."}, "No.")):
        wrapped = make_method("guardrail", **method).unlearn(subject, own, Workspace(SETTINGS))
        assert greedy_text(wrapped, asked, max_new_tokens=30) == [texts] * 2


def test_keywords_without_entities_are_an_error(world):
    subject, request = world
    nameless = tuple(replace(r, entity="") for r in request.forget)
    with pytest.raises(DataError, match="entity"):
        make_method("keyword_filter").unlearn(
            subject, replace(request, splits={**request.splits, "forget": nameless}), Workspace(SETTINGS)
        )


# ECO --------------------------------------------------------------------------------------------------


def test_the_search_meets_a_target_from_above():
    value = lambda s: 2.0 * math.log1p(s)  # noqa: E731
    sigma, reached = search(value, 3.0, scale=0.1, rounds=12)
    assert sigma == pytest.approx(math.expm1(1.5), rel=1e-3)
    assert reached >= 3.0
    capped = lambda s: min(1.0, s)  # noqa: E731
    sigma, reached = search(capped, 3.0, scale=0.1, rounds=4)
    assert reached == 1.0


def test_the_noise_brings_the_forget_answers_to_the_target(results, world):
    _, request = world
    wrapped, workspace = results["eco"]
    facts = workspace.facts
    assert facts["true_positive_rate"] == 1.0
    assert facts["sigma"] == wrapped.rule.sigma > 0
    assert facts["target"] == 1.5 <= facts["reached"] < 1.6
    assert facts["reached"] == pytest.approx(by_rows(wrapped, request.forget))
    assert made("eco", world, sigma=0.25)[0].rule.sigma == 0.25


def test_its_own_target_is_what_retain_prompts_give(world):
    subject, request = world
    asked = [r.asked(request.retain[i].prompt) for i, r in enumerate(request.forget)]
    facts = made("eco", world)[1].facts
    assert facts["target"] == pytest.approx(by_rows(subject, asked))
    assert facts["target"] <= facts["reached"] < 1.1 * facts["target"]


def by_rows(subject, records):
    rows = score_sheet(subject, make_sheet(subject.encoder, records, "forget"))
    return float(np.mean([-row.logprobs.mean() for row in rows]))


def test_eco_needs_questions(world):
    subject, request = world
    texts = tuple(Record(r.id, r.entity, "", r.answer) for r in request.forget)
    with pytest.raises(DataError, match="questions"):
        make_method("eco").unlearn(
            subject, replace(request, splits={**request.splits, "forget": texts}), Workspace(SETTINGS)
        )


# ICUL -------------------------------------------------------------------------------------------------


def roomy(**splits):
    subject = tiny_subject(seed=2, max_length=512)
    request = tiny_request(6, 6)
    return subject, replace(request, splits={**request.splits, **splits})


@pytest.mark.parametrize("shots", [0, 2, 6])
def test_no_prompt_holds_a_gold_forget_answer(shots):
    subject, request = roomy()
    unique = tuple(replace(r, answer=f"answer{i}x") for i, r in enumerate(request.forget))
    request = replace(request, splits={**request.splits, "forget": unique})
    workspace = Workspace(SETTINGS)
    wrapped = make_method("icul", shots=shots).unlearn(subject, request, workspace)
    assert workspace.facts["prompts_changed"] == 1.0
    assert len(wrapped.rule.kept) == shots
    for record in [*request.forget, *request.retain]:
        text = subject.encoder.decode(wrapped.reprompt(subject.encoder.prompt_ids(record)))
        assert not any(r.answer in text for r in request.forget)
        assert text.count("Answer:") == shots + 2
        assert text.endswith(subject.encoder.prompt_text(record))


def test_the_flipped_example_is_the_question_itself_with_a_false_answer():
    subject, request = roomy()
    wrapped = make_method("icul", shots=1).unlearn(subject, request, Workspace(SETTINGS))
    record = request.forget[2]
    text = subject.encoder.decode(wrapped.reprompt(subject.encoder.prompt_ids(record)))
    assert text.startswith(f"Question: {record.prompt}\nAnswer: {record.alternates[0]}\nQuestion: ")


def test_labels_are_flipped_to_the_wrong_choice():
    labels = ("yes", "no")
    rows = [
        Record(f"c{i}", f"c{i}", f"Is {i} odd?", labels[i % 2], choices=labels, label=i % 2) for i in range(4)
    ]
    subject, request = roomy(forget=tuple(rows[:2]), retain=tuple(rows[2:]))
    wrapped = make_method("icul").unlearn(subject, request, Workspace(SETTINGS))
    for record, example in zip(rows, wrapped.rule.flipped, strict=False):
        shown = subject.encoder.decode(example.ids)
        assert normalized(shown.rpartition("Answer:")[2]) == labels[1 - record.label]


def test_a_context_without_room_is_said(world, capsys):
    _, workspace = made("icul", world, room=120)
    assert workspace.facts["prompts_changed"] == 0.0
    assert "raise max_length" in capsys.readouterr().err
