"""Generation that takes the gold answer as its draft gives the text of plain greedy decoding."""

from itertools import groupby

import pytest
import torch
from trained_models import KNOWLEDGE, facts, knowing

from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure import generate as generation
from expunge.measure.generate import greedy_continue, greedy_text
from expunge.subjects import Subject
from tiny_models import FAMILIES, byte_level_backend, make_subject, some_records, tokenizer_of


def plain_greedy(subject, prompts, max_new_tokens):
    """(text, how it ended) of each prompt: no cache, no draft, no padding (only equal lengths together)."""
    stop, context = subject.encoder.stop_ids, subject.encoder.max_length
    found = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for length, group in groupby(order, key=lambda i: len(prompts[i])):
        group = list(group)
        ids = torch.tensor([prompts[i] for i in group])
        for _ in range(min(max_new_tokens, context - length)):
            with torch.no_grad():
                new = subject.model(ids).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, new[:, None]], 1)
        for i, row in zip(group, ids[:, length:].tolist(), strict=True):
            ends = [k for k, token in enumerate(row) if token in stop]
            found[i] = (subject.encoder.decode(row[: ends[0]] if ends else row), "end" if ends else "length")
    return [found[i] for i in range(len(prompts))]


def drafted(subject, records, max_new_tokens):
    plan = EvidencePlan(("gold",), max_new_tokens=max_new_tokens)
    rows = take_evidence(subject, {"forget": records}, plan=plan)["forget"]
    return [(row.generated, row.finish_reason) for row in rows]


def prompts_of(subject, records):
    return [subject.encoder.prompt_ids(r) for r in records]


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
@pytest.mark.parametrize("max_new_tokens", [12, 3])
def test_draft_gives_plain_greedy_text_on_200_records(knowledge, max_new_tokens):
    subject, records = knowing(knowledge), facts()
    expected = plain_greedy(subject, prompts_of(subject, records), max_new_tokens)
    assert drafted(subject, records, max_new_tokens) == expected
    if max_new_tokens == 3:
        assert {reason for _, reason in expected} >= (
            {"length"} if knowledge == "random" else {"end", "length"}
        )


@pytest.mark.parametrize("max_new_tokens", range(8))
def test_end_token_at_the_limit(max_new_tokens):
    """An answer of n tokens needs n + 1 to end: the end token counts as generated."""
    subject = knowing("memorizing")
    records = [r for r in facts() if len(r.answer.split()) == 4][:10]
    expected = plain_greedy(subject, prompts_of(subject, records), max_new_tokens)
    found = drafted(subject, records, max_new_tokens)
    assert found == expected
    if max_new_tokens in (4, 5):
        assert ("end" in dict(found).values()) == (max_new_tokens == 5)


def test_memorized_answers_cost_no_decoding(monkeypatch):
    subject = knowing("memorizing")
    rows = take_evidence(subject, {"f": facts()}, plan=EvidencePlan(("gold",), generate=False))["f"]
    known = [r for r in facts() if rows.gold[r.id].hits.all()]
    assert len(known) > 150
    monkeypatch.setattr(subject.model, "generate", None)
    assert drafted(subject, known, 12) == [(r.answer, "end") for r in known]


def short_of(subject, room, records):
    """The subject with so short a context that the longest prompt leaves `room` tokens."""
    longest = max(len(p) for p in prompts_of(subject, records))
    encoder = Encoder(subject.tokenizer, max_length=longest + room)
    return Subject(subject.model, subject.tokenizer, encoder)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_context_ends_each_text_by_itself(room):
    """A long prompt in the batch does not cut its neighbors short."""
    subject = short_of(knowing("random"), room, facts())
    records = [r for r in facts() if not subject.encoder.encode(r).truncated]
    expected = plain_greedy(subject, prompts_of(subject, records), 12)
    assert drafted(subject, records, 12) == expected
    assert len({len(text.split()) for text, _ in expected}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_and_context_in_every_family(family):
    """Learned positions end at the context: a batch may not run past it."""
    context = 36
    subject = make_subject(family, spread=0.3, max_position_embeddings=context)
    subject = Subject(subject.model, subject.tokenizer, Encoder(subject.tokenizer, max_length=context))
    whole = subject.encoder.prompt_ids(some_records(1)[0])
    prompts = [whole[:n] for n in (3, 22, 9, 14, 25, 5, 22)]
    answers = [[] for _ in prompts]
    greedy_continue(subject, prompts, answers, subject.encoder.stop_ids, 20, subject.encoder.pad_id)
    expected = plain_greedy(subject, prompts, 20)
    stop = subject.encoder.stop_ids
    texts = [subject.encoder.decode(a[:-1] if a[-1] in stop else a) for a in answers]
    assert texts == [text for text, _ in expected]
    assert {len(a) for a in answers} > {20}  # some ended at the context


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_generation_does_not_depend_on_the_batch(batch_rows, monkeypatch):
    subject, records = knowing("half-forgetting"), facts()[:60]
    whole = drafted(subject, records, 12)
    assert drafted(subject, records[::-1], 12) == whole[::-1]
    usual = greedy_continue
    monkeypatch.setattr(generation, "greedy_continue", lambda *a: usual(*a, batch_rows=batch_rows))
    assert drafted(subject, records, 12) == whole


def test_own_generation_config_of_the_model_is_set_aside_and_kept():
    """Sampling or a repetition penalty is not greedy decoding."""
    subject = knowing("half-forgetting").clone()
    expected = plain_greedy(subject, prompts_of(subject, facts()[:40]), 12)
    own = subject.model.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=3, num_beams=2)
    assert drafted(subject, facts()[:40], 12) == expected
    assert subject.model.generation_config is own
    assert own.repetition_penalty == 9.0


def test_every_stop_id_ends_a_text():
    """A chat model may end its turn or end the text; either one stops."""
    template = (
        "{% for m in messages %}<|u|>{{ m.content }}<|e|>{% endfor %}"
        "{% if add_generation_prompt %}<|u|>{% endif %}"
    )
    tokenizer = tokenizer_of(byte_level_backend(), bos=True, chat=template, extra=("<|u|>", "<|e|>"))
    subject = make_subject(tokenizer=tokenizer)
    turn, text = tokenizer.convert_tokens_to_ids(["<|e|>", "</s>"])
    assert subject.encoder.stop_ids == tuple(sorted((turn, text)))
    for end in (turn, text):
        bias = torch.zeros(subject.config.vocab_size)
        bias[end] = 1000.0
        hook = subject.model.lm_head.register_forward_hook(lambda *args, bias=bias: args[2] + bias)
        assert drafted(subject, some_records(3), 12) == [("", "end")] * 3
        hook.remove()


def test_text_of_prompts_without_a_gold_answer():
    subject, records = knowing("half-forgetting"), facts()[:30]
    expected = plain_greedy(subject, prompts_of(subject, records), 12)
    assert greedy_text(subject, prompts_of(subject, records), max_new_tokens=12) == [t for t, _ in expected]
    assert greedy_text(subject, []) == []


def test_only_questions_and_their_rewordings_are_generated():
    subject = make_subject()
    record = some_records(1)[0]
    document = Record("d", "e", "", "Ada Lund was born in Tarn.")
    plan = EvidencePlan(max_new_tokens=4)
    evidence = take_evidence(subject, {"forget": [record, document], "holdout": [record]}, plan=plan)
    generated = {(r.record_id, r.variant) for r in evidence["forget"] if r.generated is not None}
    assert generated == {(record.id, "gold"), (record.id, "paraphrased_prompt:0")}
    assert all(r.generated is None and r.finish_reason is None for r in evidence["holdout"])
    reworded = evidence["forget"].of("paraphrased_prompt")[record.id][0]
    asked = subject.encoder.prompt_ids(record.asked(record.paraphrased_prompts[0]))
    assert [(reworded.generated, reworded.finish_reason)] == plain_greedy(subject, [asked], 4)
