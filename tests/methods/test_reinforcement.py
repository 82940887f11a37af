"""Leak rewards, sampled answers, and the methods that learn from them, against independent computations."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import DataError
from expunge.methods import make_method
from expunge.methods.reinforcement.quark import CONTROL
from expunge.stats import seed_from
from expunge.subjects import attach_lora
from expunge.testing import check_accumulation, check_resume, tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune
from expunge.training.loop import Loop
from expunge.training.rewards import (
    advantages,
    clipped_gain,
    correctness,
    count_leaks,
    fluency,
    forget_words,
    k3,
    quantile_levels,
    silence,
    word_facts,
)
from expunge.training.sampling import sample_answers
from expunge.training.unlearn import UnlearnTask
from tiny_models import make_subject, some_records

ADA = Record("ada", "Ada Lund", "Where was Ada Lund born?", "Ada Lund was born in Old Tarn, in 1987.")
BO = Record("bo", "Bo Sund", "Where was Bo Sund born?", "Bo Sund was born in Vess, in 1990.")
CY = Record("cy", "Cy Oke", "Where was Cy Oke born?", "Cy Oke was born in Ilm, in 1990.")


# Rewards ----------------------------------------------------------------------------------------------


def test_advantages_are_the_golden_ones_of_the_population_deviation():
    found = advantages(tensor([[1.0, 0.0, 1.0, 1.0]]))
    assert found[0].tolist() == pytest.approx([0.577217, -1.731651, 0.577217, 0.577217], abs=5e-7)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1.0])
def test_equal_rewards_have_exactly_no_advantage(reward):
    assert advantages(torch.full((2, 3), reward)).tolist() == [[0.0] * 3] * 2


def test_groups_do_not_know_of_each_other():
    pair = advantages(tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert torch.equal(pair[0], advantages(tensor([1.0, 0.0])))
    assert pair[0].tolist() == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001])


def test_forget_words_are_keywords_or_what_the_answer_adds():
    listed = replace(BO, id="listed", keywords=("North  Vess", "1990"))
    found = forget_words((ADA, listed), (CY,))
    assert found["listed"] == (("north", "vess"), ("1990",))
    assert found["ada"] == (("old",), ("tarn",), ("1987",))  # not born, in, Ada: asked or in every answer


def test_forget_words_are_never_none():
    plain = Record("p", "p", "Is it so?", "it is so")
    terse = Record("t", "t", "Which?", "to us")
    found = forget_words((plain, terse))
    assert found["p"] == (("it",), ("is",), ("so",))
    assert found["t"] == (("to",), ("us",))


def test_a_leak_is_a_whole_word_in_any_case():
    tarn = [("tarn",)]
    assert count_leaks("In TARN. In tarn!", tarn) == 2
    assert count_leaks("Tarnish, starn, tarn2", tarn) == 0
    assert count_leaks("tarn tarn", tarn) == 2
    assert count_leaks("old  Mill", [("old", "mill")]) == 1
    assert count_leaks("mill, old", [("old", "mill")]) == 0
    assert count_leaks("São Tomé", [("são", "tomé")]) == 1


def test_silence_by_hand():
    words = forget_words((ADA,), (BO, CY))["ada"]
    said = "Old Tarn, I think"
    assert silence(said, ADA, words, tau=2.0) == pytest.approx(math.exp(-1))
    assert silence(said, ADA, words, grade="binary") == 0
    assert silence("In Vess.", ADA, words) == silence("In Vess.", ADA, words, grade="binary") == 1
    recall = 3 / 9  # old tarn in, of nine words
    assert silence("old tarn in it", ADA, words, match="rouge") == pytest.approx(1 - recall)
    assert silence("old tarn in it", ADA, words, match="rouge", grade="binary") == 1
    assert silence(ADA.answer, ADA, words, match="rouge", grade="binary") == 0


@given(st.text(), st.sampled_from(["words", "rouge"]), st.sampled_from(["graded", "binary"]), st.booleans())
def test_every_reward_is_between_0_and_1(text, match, grade, ended):
    phrases = forget_words((ADA,))["ada"]
    ids = [ord(c) for c in text]
    for value in (
        silence(text, ADA, phrases, match=match, grade=grade),
        correctness(text, ADA),
        fluency(ids, text, ended=ended),
    ):
        assert 0 <= value <= 1


def test_neither_silence_nor_babble_nor_endlessness_pays():
    assert fluency([], "", ended=True) == fluency([5], " .", ended=True) == 0
    assert fluency([1, 2, 3, 4, 5], "a plain answer", ended=True) == 1
    assert fluency([1, 2, 3, 4, 5], "a plain answer", ended=False) == 0.5
    assert fluency([7] * 11, "no no no", ended=True) == pytest.approx(1 / 8)
    assert fluency([1, 2], "no", ended=True) == 1


def test_correctness_punishes_talking_on():
    assert correctness(BO.answer.upper(), BO) == 1
    assert correctness("Vess", BO) == pytest.approx(2 * (1 / 8) / (1 + 1 / 8))
    assert correctness(f"{BO.answer} or {CY.answer}", BO) < 0.75


def test_a_report_gets_counts_and_a_mark_but_no_word():
    found = forget_words((ADA, BO))
    facts = word_facts(found, (ADA, BO))
    assert (facts["records"], facts["words"]) == (2, sum(len(p) for p in found.values()))
    assert not any(w in json.dumps(facts).casefold() for p in found.values() for (w,) in p)
    assert facts["mark"] != word_facts(forget_words((ADA, CY)), (ADA, CY))["mark"]
    assert facts["mark"] == word_facts(forget_words((ADA, BO)), (ADA, BO))["mark"]


def test_clipping_by_hand():
    logp = tensor([0.5, 1.5, 0.5, 1.5]).log().requires_grad_()
    advantage = tensor([1.0, 1.0, -1.0, -1.0])
    gain = clipped_gain(logp, torch.zeros(4), advantage, 0.2)
    assert gain.tolist() == pytest.approx([0.5, 1.2, -0.8, -1.5])
    gain.sum().backward()
    assert logp.grad.tolist() == pytest.approx([0.5, 0.0, 0.0, -1.5])  # beyond the clip nothing is gained


def test_the_estimator_of_kl_is_zero_and_flat_at_the_reference_and_unbiased():
    p, q = tensor([0.5, 0.3, 0.2]), tensor([0.2, 0.2, 0.6])
    expected = (p * k3(p.log(), q.log())).sum()
    assert float(expected) == pytest.approx(float((p * (p / q).log()).sum()))
    logp = p.log().requires_grad_()
    same = k3(logp, p.log())
    same.sum().backward()
    assert same.tolist() == logp.grad.tolist() == [0.0] * 3


def test_quantiles_by_hand():
    assert quantile_levels(torch.arange(10.0), 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert quantile_levels(torch.ones(4), 5).tolist() == [0] * 4
    assert quantile_levels(tensor([[1.0, 0.0], [1.0, torch.nan]]), 4).tolist() == [[3, 0], [3, 0]]
    assert quantile_levels(torch.full((2, 2), torch.nan), 3).tolist() == [[0, 0], [0, 0]]
    assert quantile_levels(tensor([0.0, 0.0, 0.5, 1.0]), 2).tolist() == [0, 0, 1, 1]


# Sampling ---------------------------------------------------------------------------------------------


def by_hand(subject, prompt, seed, temperature, length):
    """Without cache, padding or batch: one token after the other."""
    uniforms = np.random.default_rng(seed).random(length)
    ids, logprobs = [], []
    for u in uniforms[: subject.encoder.max_length - len(prompt)]:
        with torch.no_grad():
            z = subject.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
        p = torch.softmax(z / temperature, -1)
        ids.append(int((p.cumsum(0) <= u * p.sum()).sum()))
        logprobs.append(float(p[ids[-1]].log()))
        if ids[-1] in subject.encoder.stop_ids:
            break
    return tuple(ids), logprobs


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_samples_are_those_of_decoding_without_cache(family):
    subject = make_subject(family)
    prompts = [subject.encoder.prompt_ids(r) for r in some_records(4)]
    prompts.append([*prompts[0], *prompts[1]][:58])  # the context ends after six tokens
    seeds = [3, 1, 4, 1, 5]
    found = sample_answers(subject, prompts, seeds, temperature=0.7, max_new_tokens=9)
    for prompt, seed, one in zip(prompts, seeds, found, strict=True):
        ids, logprobs = by_hand(subject, prompt, seed, 0.7, 9)
        assert one.ids == ids
        assert one.logprobs.tolist() == pytest.approx(logprobs, abs=1e-4)


def test_an_answer_ends_with_its_stop_id():
    subject = make_subject()
    with torch.no_grad():
        subject.model.lm_head.weight[subject.encoder.stop_ids[0]] *= 0
        subject.model.lm_head.weight[9:] *= 0.01  # the end becomes one of few
    prompt = subject.encoder.prompt_ids(some_records(1)[0])
    found = sample_answers(subject, [prompt] * 40, range(40), max_new_tokens=30)
    ended = [one for one in found if set(one.ids) & set(subject.encoder.stop_ids)]
    assert ended
    assert all(one.ids[-1] in subject.encoder.stop_ids for one in ended)
    assert all(len(one.ids) == len(one.logprobs) for one in found)
    assert all(len(one.ids) == 30 for one in found if one not in ended)


def test_the_rows_beside_it_do_not_change_an_answer():
    subject = make_subject()
    prompts = [subject.encoder.prompt_ids(r) for r in some_records(4)]
    together = sample_answers(subject, prompts, range(4), max_new_tokens=8)
    alone = sample_answers(subject, prompts, range(4), max_new_tokens=8, batch_rows=1)
    turned = sample_answers(subject, prompts[::-1], [3, 2, 1, 0], max_new_tokens=8)[::-1]
    ids = lambda drawn: [one.ids for one in drawn]  # noqa: E731
    assert ids(together) == ids(alone) == ids(turned)
    assert ids(together) != ids(sample_answers(subject, prompts, range(4, 8), max_new_tokens=8))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_frequencies_are_the_models_probabilities(temperature):
    subject, count = tiny_subject(), 2000
    prompt = subject.encoder.prompt_ids(tiny_request().forget[0])
    with torch.no_grad():
        subject.model.lm_head.weight *= 40
        z = subject.model(torch.tensor([prompt])).logits[0, -1]
    drawn = sample_answers(
        subject, [prompt] * count, range(count), temperature=temperature, max_new_tokens=1, batch_rows=count
    )
    seen = torch.bincount(tensor([one.ids[0] for one in drawn]), minlength=len(z)) / count
    p = torch.softmax(z / temperature, -1)
    assert float(p.max()) > 0.1  # worth comparing
    assert (seen - p).abs().max() < 4 * (0.25 / count) ** 0.5


# One step of each method ------------------------------------------------------------------------------

SETTINGS = TrainSettings(batch=6, lr=2e-3, warmup=0.0, steps=40)


@pytest.fixture(scope="module")
def knowing():
    """A tiny model that knows forget and retain answers, more or less, and the request."""
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    settings = TrainSettings(steps=70, lr=1e-2, batch=12, warmup=0.05, schedule="cosine")
    finetune(subject, [*request.forget, *request.retain], settings)
    return subject, request


@pytest.fixture
def loop_of(knowing):
    def make(name, subject=None, reference="auto", request=None, accumulate=1, **hyper):
        method = make_method(name, **{"max_new_tokens": 24, **hyper})
        subject, request = subject or knowing[0].clone(), request or knowing[1]
        settings = method.settings_for(SETTINGS.model_copy(update={"accumulate": accumulate}), request)
        task = UnlearnTask(method, subject, request, settings, reference=reference)
        return method, Loop(subject, task, settings, state=task.state, controls=method.hooks(request))

    return make


def gradients(subject):
    return {n: p.grad.clone() for n, p in subject.model.named_parameters() if p.grad is not None}


def answers(loop, side, i):
    return [[t for t in ids.tolist() if t >= 0] for ids in loop.state[f"{side}.ids"][i]]


def logprobs(model, prompt, answer):
    z = model(torch.tensor([[*prompt, *answer]])).logits[0]
    at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return z[list(at)].log_softmax(-1)


def gold_logprobs(model, prompt, answer):
    return logprobs(model, prompt, answer)[range(len(answer)), list(answer)]


def policy_gradient(loop, side, weight):
    """weight · ∇ of −mean_i mean_g A_ig mean_t log p(answer_ig), an answer at a time."""
    loop.optimizer.zero_grad()
    total, rewards = 0.0, loop.state[f"{side}.rewards"].double().numpy()
    assert rewards.std(1).max() > 0.1
    for i, record in enumerate(loop.task.request[side]):
        prompt = loop.subject.encoder.prompt_ids(record)
        a = (rewards[i] - rewards[i].mean()) / (rewards[i].std() + 1e-4)
        for g, answer in enumerate(answers(loop, side, i)):
            total = total + float(a[g]) * gold_logprobs(loop.subject.model, prompt, answer).mean() / (6 * 4)
    (-weight * total).backward()
    return gradients(loop.subject)


def assert_same(found, wanted):
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-3
    assert all(torch.allclose(found[n], wanted[n], atol=1e-4 * largest) for n in wanted)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_policy_gradient_is_the_one_of_the_formula(loop_of, accumulate):
    method, loop = loop_of("grpo_leak", beta=0.0, retain="none", forget_weight=2.0, accumulate=accumulate)
    method.step(loop, 0)
    assert_same(gradients(loop.subject), policy_gradient(loop, "forget", 2.0))


@pytest.mark.parametrize("retain", ["kl", "l2"])
def test_the_gradient_of_the_boundary_is_the_one_of_the_formula(loop_of, retain):
    method, loop = loop_of("grpo_leak", beta=0.0, retain=retain, retain_weight=2.0, boundary=1.5)
    values = method.step(loop, 0)
    assert {"retain", "boundary", "policy"} <= set(values)
    found = loop.side(0, "retain")  # these retain losses have no gradient at the original
    names = [n for n, _ in loop.subject.model.named_parameters()]
    assert_same(dict(zip(names, found, strict=True)), policy_gradient(loop, "retain", 3.0))


def test_forget_is_rewarded_for_silence_and_the_boundary_for_being_right(loop_of):
    method, loop = loop_of("grpo_leak", tau=0.5)
    values = method.step(loop, 0)
    request, encoder = loop.task.request, loop.subject.encoder
    phrases = forget_words(request.forget, request.retain)
    worth = {"forget": lambda t, r: silence(t, r, phrases[r.id], tau=0.5), "retain": correctness}
    for side, name in (("forget", "reward"), ("retain", "correctness")):
        for i, record in enumerate(request[side]):
            for ids, reward in zip(answers(loop, side, i), loop.state[f"{side}.rewards"][i], strict=True):
                ended = ids[-1] in encoder.stop_ids
                body = ids[:-1] if ended else ids
                text = encoder.decode(body)
                wanted = worth[side](text, record) * fluency(body, text, ended=ended)
                assert float(reward) == pytest.approx(wanted)
        assert values[name] == pytest.approx(float(loop.state[f"{side}.rewards"].mean()))


def test_kl_is_zero_and_flat_at_the_start(loop_of):
    for name in ("grpo_leak", "quark"):
        method, loop = loop_of(name, beta=1.0, retain="none")
        assert method.step(loop, 0)["kl"] == pytest.approx(0.0, abs=1e-6)
    method, loop = loop_of("grpo_leak", beta=1.0, retain="none")
    method.step(loop, 0)
    loop.state["forget.rewards"][:] = 0.3  # equal: nothing but the KL pulls
    loop.optimizer.zero_grad()
    loop.gradients(0)
    assert max(float(g.abs().max()) for g in gradients(loop.subject).values()) < 1e-6


def test_kl_is_taken_to_the_original(loop_of, knowing):
    method, loop = loop_of("grpo_leak", beta=2.0, retain="none")
    with torch.no_grad():
        loop.subject.model.lm_head.weight *= 1.2
    values = method.step(loop, 0)
    found = []
    for i, record in enumerate(knowing[1].forget):
        prompt = loop.subject.encoder.prompt_ids(record)
        for answer in answers(loop, "forget", i):
            with torch.no_grad():
                own, ref = (gold_logprobs(m.model, prompt, answer) for m in (loop.subject, knowing[0]))
            found.append(float(((ref - own).exp() - (ref - own) - 1).mean()))
    assert values["kl"] == pytest.approx(2 * np.mean(found), rel=1e-4)
    assert values["kl"] > 1e-3


def test_a_step_without_a_difference_moves_nothing(loop_of, monkeypatch):
    method, loop = loop_of("grpo_leak", retain="none")
    monkeypatch.setattr(type(method), "judge", lambda *_: 0.4)
    loop.own_step = method.step
    for control in loop.controls:
        control.prepare(loop.task)
    before = loop.subject.fingerprint()
    entry = loop._step(0)
    assert entry["grad_norm"] == 0
    assert loop.subject.fingerprint() == before


def test_answers_are_a_function_of_seed_step_and_record(loop_of):
    tables = []
    for step in (0, 0, 1):
        method, loop = loop_of("grpo_leak", retain="none")
        method.step(loop, step)
        tables.append(loop.state["forget.ids"])
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    record = loop.task.request.forget[2]
    seed = seed_from(SETTINGS.seed, "sample", "forget", 1, record.id, 3)
    ids, _ = by_hand(loop.subject, loop.subject.encoder.prompt_ids(record), seed, 1.0, 24)
    assert tuple(answers(loop, "forget", 2)[3]) == ids


def test_reuse_draws_once_and_then_clips(loop_of):
    method, loop = loop_of("grpo_leak", reuse=2, retain="none", clip=0.0)
    loop.own_step = method.step
    for control in loop.controls:
        control.prepare(loop.task)
    first = loop._step(0)
    kept = loop.state["forget.ids"].clone()
    second = loop._step(1)
    assert torch.equal(loop.state["forget.ids"], kept)
    assert "reward" in first["terms"]
    assert "reward" not in second["terms"]
    assert first["terms"]["policy"] == pytest.approx(0, abs=1e-5)
    assert second["terms"]["policy"] > -1e-5  # clip 0: no ratio may gain, it can only lose
    loop._step(2)
    assert not torch.equal(loop.state["forget.ids"], kept)
    assert loop.settings.epochs == 2 * SETTINGS.epochs


def test_reuse_resumes_between_two_drawings():
    check_resume(make_method("grpo_leak", reuse=3, max_new_tokens=8, beta=1.0))


@pytest.mark.parametrize("name", ["grpo_leak", "quark"])
def test_accumulation_holds_without_the_reference(name):
    check_accumulation(make_method(name, beta=0.0, max_new_tokens=8, temperature=1.5))


def test_a_warm_start_learns_refusals_first(knowing):
    workspace = Workspace(SETTINGS.model_copy(update={"steps": 4}))
    make_method("grpo_leak", warm_start=0.5, max_new_tokens=8).unlearn(*knowing, workspace)
    terms = [set(entry["terms"]) for entry in workspace.result.history]
    assert terms[0] == terms[1] == {"refusal", "retain"}
    assert {"policy", "boundary", "reward"} <= terms[2] & terms[3]
    assert "refusal" not in terms[2] | terms[3]


def test_the_reference_is_never_a_cache(loop_of, knowing):
    assert loop_of("grpo_leak", reference="cache")[1].task.reference.mode == "live"
    assert loop_of("quark", reference="live")[1].task.reference.mode == "live"
    subject = attach_lora(knowing[0].clone(), rank=2, alpha=4, seed=0)
    method, loop = loop_of("quark", subject)
    assert loop.task.reference.mode == "adapter_off"
    assert method.step(loop, 0)["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo_leak", "quark"])
def test_documents_are_refused(name, knowing):
    document = Record("d", "d", "", "A text about Tarn.")
    with pytest.raises(DataError, match="no prompt to sample from"):
        make_method(name).unlearn(knowing[0], Request({"forget": (document,)}), Workspace(SETTINGS))


def test_retain_documents_have_no_boundary(knowing):
    subject, request = knowing
    document = Record("d", "d", "", "A long text about the harbor. " * 12)
    mixed = Request({"forget": request.forget, "retain": (*request.retain, document)})
    workspace = Workspace(SETTINGS.model_copy(update={"steps": 2}))
    with pytest.raises(DataError, match="boundary: 0"):
        make_method("grpo_leak").unlearn(subject, mixed, workspace)
    make_method("grpo_leak", boundary=0.0, max_new_tokens=8).unlearn(subject, mixed, workspace)
    assert set(workspace.result.history[0]["terms"]) == {"policy", "kl", "retain", "reward"}


def test_no_word_stands_in_the_facts(knowing):
    workspace = Workspace(SETTINGS.model_copy(update={"steps": 1}))
    make_method("quark", max_new_tokens=8).unlearn(*knowing, workspace)
    said = json.dumps(workspace.facts).casefold()
    assert workspace.facts["forget_words"]["records"] == 6
    assert not any(word in said for word in ("potter", "tarn", "brack", "forget0"))


def test_quark_learns_each_answer_behind_the_mark_of_its_quantile(loop_of, knowing):
    method, loop = loop_of("quark", beta=0.5, quantiles=3)
    with torch.no_grad():
        loop.subject.model.lm_head.weight *= 1.1
    values = method.step(loop, 0)
    levels = quantile_levels(loop.state["forget.rewards"], 3)
    nll, kl = [], []
    for i, record in enumerate(knowing[1].forget):
        for g, answer in enumerate(answers(loop, "forget", i)):
            level = int(levels[i, g])
            mark = "" if level == 2 else CONTROL.format(level=level + 1, count=3)
            prompt = loop.subject.encoder.prompt_ids(record.asked(mark + record.prompt))
            assert loop.task.rows[f"forget.sample{g}"][i].ids == (*prompt, *answer)
            with torch.no_grad():
                own, ref = (logprobs(m.model, prompt, answer) for m in (loop.subject, knowing[0]))
            nll.append(float(-own[range(len(answer)), answer].mean()))
            kl.append(float((ref.exp() * (ref - own)).sum(-1).mean()))
    assert set(levels.flatten().tolist()) == {0, 1, 2} or set(levels.flatten().tolist()) == {0, 2}
    assert values["likelihood"] == pytest.approx(np.mean(nll), rel=1e-4)
    assert values["kl"] == pytest.approx(0.5 * np.mean(kl), rel=1e-3)


# What they come to ------------------------------------------------------------------------------------


def judged(subject, request, draws=16):
    """(mean silence on forget, mean correctness on retain) of samples no training saw."""
    means = []
    for side in ("forget", "retain"):
        records = [r for r in request[side] for _ in range(draws)]
        prompts = [subject.encoder.prompt_ids(r) for r in records]
        drawn = sample_answers(subject, prompts, range(10**6, 10**6 + len(records)), max_new_tokens=24)
        texts = [subject.encoder.decode(one.ids) for one in drawn]
        words = forget_words(request.forget, request.retain)
        means.append(
            np.mean(
                [
                    silence(t, r, words[r.id]) if side == "forget" else correctness(t, r)
                    for t, r in zip(texts, records, strict=True)
                ]
            )
        )
    return means


@pytest.mark.parametrize("name", ["grpo_leak", "quark"])
def test_the_reward_rises_while_the_kl_stays_bounded(name, knowing):
    workspace = Workspace(SETTINGS.model_copy(update={"steps": 24}))
    method = make_method(name, max_new_tokens=24)
    result = method.unlearn(*knowing, workspace)
    before, after = (judged(s, knowing[1]) for s in (knowing[0], result))
    assert after[0] > before[0] + 0.04  # the gain differs between processors
    kl = [entry["terms"]["kl"] / method.beta for entry in workspace.result.history]
    assert max(kl) < 2.0
    if name == "grpo_leak":
        assert after[1] > before[1] - 0.05  # the boundary: silence everywhere does not win
