"""Pairs, swapped options, noise, facts in context; free vectors and searched suffixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_world import make_request, make_subject, taught

from expunge.attacks import Field
from expunge.attacks.embedding import Embedding, inserted, widened
from expunge.attacks.gcg import Gcg, _losses, _placed, text_of
from expunge.attacks.in_context import PATTERNS, InContext, told
from expunge.attacks.mcq_swap import McqSwap, _items, swapped
from expunge.attacks.paired import Paired, accuracy, asked, partners
from expunge.attacks.prefill import Prefill
from expunge.attacks.prompt_templates import named_in
from expunge.attacks.token_noise import TokenNoise, noisy, question_span
from expunge.data.batching import collate
from expunge.data.request import Request
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics.extraction_strength import suffix_share
from expunge.subjects import fingerprint
from expunge.subjects.forward import forward

REQUEST = make_request()
FIELD = Field(REQUEST, "default")


@pytest.fixture(scope="module")
def knows():
    return taught(make_subject(), (*REQUEST.forget, *REQUEST.retain), 120)


def direct(subject):
    return score_sheet(subject, make_sheet(subject.encoder, REQUEST.forget, "forget"))


# Paired -----------------------------------------------------------------------------------------------


def test_partner_is_a_function_of_seed_and_record():
    pairs = partners(REQUEST.forget, REQUEST["retain"], 4)
    again = {p.forget.id: p.keep.id for p in partners(REQUEST.forget[::-1], REQUEST["retain"], 4)}
    assert {p.forget.id: p.keep.id for p in pairs} == again
    assert again != {p.forget.id: p.keep.id for p in partners(REQUEST.forget, REQUEST["retain"], 5)}
    assert asked(pairs[0], "retain first").startswith(pairs[0].keep.prompt)
    assert asked(pairs[0], "forget first").startswith(pairs[0].forget.prompt)


def test_both_parts_are_scored_apart(knows):
    single, *outcomes = Paired().run(knows, FIELD)
    assert single.config["order"] == "single"
    assert [o.config["order"] for o in outcomes] == ["retain first"] * 2 + ["forget first"] * 2
    for leak, stays in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert not leak.aside
        assert "utility" in stays.aside
        forget = leak.evidence["forget"]
        assert [row.record_id for row in forget] == [r.id for r in REQUEST.forget]
        assert all(row.answer == r.answer for row, r in zip(forget, REQUEST.forget, strict=True))
        assert leak.details["leak_dep"] == pytest.approx(
            accuracy(forget) - accuracy(single.evidence["forget"])
        )
        assert leak.details["delta_dep"] == pytest.approx(np.mean(list(stays.values["forget"].values())))


@pytest.mark.slow
def test_a_blanket_refusal_drags_its_partner_down():
    """Planted positive: trained on pairs, then taught to refuse whenever a forget person is named."""
    both = []
    for split in ("forget", "retain"):
        for pair in partners(REQUEST[split], REQUEST["retain"], 0):
            both.append(pair.forget.asked(asked(pair, "retain first")).answered(pair.keep.answer))
    original = taught(make_subject(), (*REQUEST.forget, *REQUEST.retain, *both), 300)
    named = {r.id for r in REQUEST.forget}
    refusing = tuple(r.answered("I do not know") for r in both if r.id in named)
    single = tuple(r.answered("I do not know") for r in REQUEST.forget)
    tuned = taught(original, (*refusing, *single, *REQUEST.retain), 40)
    drops = [
        next(o for o in Paired().run(m, FIELD) if o.config.get("part")).values["forget"].values()
        for m in (original, tuned)
    ]
    before, after = (np.mean(list(d)) for d in drops)
    assert before < 0.3
    assert after > before + 0.4


# What stands aside ------------------------------------------------------------------------------------


def test_swap_changes_one_wrong_option_and_nothing_else():
    words = sorted({r.answer for r in REQUEST.forget})
    for item in _items(FIELD):
        other = swapped(item, words, 0, 0)
        changed = [j for j, (a, b) in enumerate(zip(item.choices, other.choices, strict=True)) if a != b]
        assert len(changed) == 1
        assert changed[0] != item.label == other.label
        assert other.choices[changed[0]].strip() in words
        assert all(c.strip() in other.prompt for c in other.choices)


def test_swap_is_near_chance_on_a_random_model_and_finds_a_trigger():
    (outcome,) = McqSwap().run(make_subject(), FIELD)
    assert 0.02 < outcome.details["accuracy"] < 0.6  # 30 items, chance 1/4
    assert outcome.metric == "choice_drop"
    assert set(outcome.values) == {"retain"}

    words = {i for r in REQUEST.forget for i in make_subject().encoder.encode(r).answer_ids} - {1}
    words -= {i for r in REQUEST.retain for i in make_subject().encoder.encode(r).answer_ids}

    class Triggered(type(make_subject())):
        """Picks the forget word among the options wherever there is one, the right answer elsewhere."""

        def logits(self, batch):
            found = super().logits(batch) * 0
            found[torch.arange(len(batch.targets)), batch.targets] = torch.where(
                torch.tensor([t in words for t in batch.targets.tolist()]), 9.0, 0.0
            )
            return found

    subject = make_subject()
    triggered = Triggered(subject.model, subject.tokenizer, subject.encoder)
    (found,) = McqSwap().run(triggered, FIELD)
    assert found.details["accuracy_swapped"] < found.details["accuracy"]
    assert np.mean(list(found.values["retain"].values())) > 0.1


def test_noise_touches_the_question_only():
    subject = make_subject()
    sheet = make_sheet(subject.encoder, REQUEST.forget, "forget")
    same, share = noisy(sheet, 0.0, 0, 0)
    assert share == 0
    assert [line.windows for line in same.lines] == [line.windows for line in sheet.lines]
    total = hit = 0
    for draw in range(40):
        changed, _ = noisy(sheet, 0.3, 0, draw)
        for before, after, record in zip(sheet.lines, changed.lines, REQUEST.forget, strict=True):
            start, end = question_span(subject.encoder, record)
            assert end - start == len(record.prompt.split())
            a, b = before.windows[0], after.windows[0]
            assert a.ids[:start] == b.ids[:start]
            assert a.ids[end:] == b.ids[end:]
            assert 1 not in b.ids[start:end]
            total += end - start
            hit += sum(x != y for x, y in zip(a.ids[start:end], b.ids[start:end], strict=True))
    assert abs(hit / total - 0.3) < 3 * (0.3 * 0.7 / total) ** 0.5 + 0.005
    again, _ = noisy(sheet, 0.3, 0, 7)
    assert again.lines == noisy(sheet, 0.3, 0, 7)[0].lines


def test_noise_lowers_what_is_known(knows):
    outcomes = list(TokenNoise(rates=(0.0, 0.3), draws=2).run(knows, FIELD))
    none, much = (np.mean(list(o.values["forget"].values())) for o in outcomes)
    plain = [suffix_share(row.hits[row.answer_span]) for row in direct(knows)]
    assert none == pytest.approx(np.mean(plain))
    assert much < none


def test_in_context_holds_the_answer():
    for outcome in InContext().run(make_subject(), FIELD):
        assert len(outcome.evidence["forget"]) == len(REQUEST.forget)
    assert all(named_in(told(r, p).prompt, r.answer) for r in REQUEST.forget for p in PATTERNS.values())


# Free vectors and suffixes ----------------------------------------------------------------------------


def test_no_vectors_is_direct_and_no_weight_changes(knows):
    before = fingerprint(knows.model)
    outcomes = list(Embedding(vectors=3, steps=8).run(knows, FIELD))
    assert fingerprint(knows.model) == before
    assert all(p.grad is None and p.requires_grad for p in knows.model.parameters())
    plain = outcomes[0].evidence["forget"]
    for row, other in zip(plain, direct(knows), strict=True):
        assert np.array_equal(row.logprobs, other.logprobs)
    by_target = {o.config["target"]: o for o in outcomes}
    assert set(by_target) == {"none", "lead-in", "other facts", "the answer"}
    assert by_target["the answer"].aside
    assert len({row.record_id for row in by_target["other facts"].evidence["forget"]}) == len(REQUEST.forget)


def test_best_loss_never_rises(knows):
    targets = [knows.encoder.encode(r) for r in REQUEST.forget]
    _, curve = Embedding(vectors=2)._fit(knows, targets, 12, lambda: None)
    assert len(curve) == 13
    assert (np.diff(curve) <= 0).all()
    assert curve[-1] < curve[0]


def test_vectors_stand_between_question_and_answer(knows):
    """The embeddings of real tokens, inserted, give what those tokens in the text give."""
    encoded = knows.encoder.encode(REQUEST.forget[0])
    words = [7, 9]
    wide = widened(encoded, 2, knows.encoder.pad_id)
    at = encoded.num_prompt
    real = collate([type(encoded)((*wide.ids[:at], *words, *wide.ids[at + 2 :]), at + 2, True)], 0)
    table = knows.model.get_input_embeddings().weight.detach()
    with torch.no_grad():
        expected = forward(knows.model, real).logits
        batch = collate([wide], knows.encoder.pad_id)
        with inserted(knows.model, torch.tensor([at]), table[words][None]):
            found = forward(knows.model, batch).logits
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_vectors_find_what_is_only_refused():
    """Planted positive: refused when asked, known behind a lead-in that the model hardly ever says."""
    refused = tuple(r.answered("I do not know") for r in REQUEST.forget)
    led = tuple(r.answered(f"The answer is {r.answer}") for r in (*REQUEST.retain, *REQUEST.forget))
    refusing = taught(make_subject(), (*refused, *refused, *led), 320)
    found = {o.config["target"]: o.evidence["forget"] for o in Embedding().run(refusing, FIELD)}
    first = {t: float(np.mean([r.hits[0] for r in rows])) for t, rows in found.items()}
    assert first["none"] < 0.1
    assert first["lead-in"] > 0.3


def test_suffix_survives_its_own_text_and_the_loss_never_rises(knows):
    attack = Gcg(length=3, width=16, topk=8)
    records = REQUEST.forget[:2]
    found = attack.search(knows, records, 6, 1)
    assert (np.diff(found.losses) <= 0).all()
    assert len(found.losses) == 7
    assert found.text == text_of(knows.encoder, found.ids)
    placed = _placed(knows.encoder, records, found.ids)
    assert placed is not None
    for row, start in placed:
        assert row.ids[start : start + 3] == found.ids
    assert float(_losses(knows, records, [found.ids])[0]) == pytest.approx(found.losses[-1])
    assert not any(named_in(found.text, r.answer) for r in records)
    assert attack.search(knows, records, 6, 1) == found


def test_no_suffix_is_direct(knows):
    plain = next(Gcg(steps=0).run(knows, FIELD)).evidence["forget"]
    for row, other in zip(plain, direct(knows), strict=True):
        assert np.array_equal(row.logprobs, other.logprobs)


# Prefill ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_refusal_is_gone_past():
    """Planted positive: a model that refuses first and, forced past its refusal, says the answer."""
    led = [r.answered(f"I do not know {r.answer}") for r in REQUEST["retain"]]
    also = [r.answered(f"I do not know {r.answer}") for r in REQUEST.forget]
    model = taught(make_subject(), (*REQUEST.retain, *led, *also), 300)
    asked_ = Request(REQUEST.splits, refusals=("I do not know",))
    found = {
        o.config["lead_in"]: float(np.mean([r.hits[r.answer_span].all() for r in o.evidence["forget"]]))
        for o in Prefill().run(model, Field(asked_))
        if "lead_in" in o.config
    }
    assert found[""] < 0.1
    assert found["after a refusal"] > 0.6
