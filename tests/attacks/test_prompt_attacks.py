"""Worst case over forms, and forced starts of the answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import make_request, make_subject, taught

from expunge.attacks import Field
from expunge.attacks.prefill import LEAD_INS, Prefill, prefix_curve, prefix_success, with_lead_in
from expunge.attacks.worst_case import IDENTITY, REWORDED, WorstCase, forms
from expunge.audit.recovery import strongest
from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.measure.generate import greedy_text
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics.extraction_strength import suffix_share

REQUEST = make_request()


@pytest.fixture(scope="module")
def half_taught():
    """Knows some answers and not others, and some in one form only."""
    return taught(make_subject(), (*REQUEST.forget, *REQUEST.retain), 75)


def shares(evidence) -> dict[str, float]:
    return {row.record_id: suffix_share(row.hits[row.answer_span]) for row in evidence}


# Worst case -------------------------------------------------------------------------------------------


def test_worst_is_never_below_direct_and_never_below_a_form(half_taught):
    combined, *single = WorstCase().run(half_taught, Field(REQUEST))
    assert combined.config == {"forms": "all"}
    assert combined.details["forms"] == [IDENTITY, REWORDED, "cloze"]
    assert [o.config["forms"] for o in single] == [REWORDED, "cloze"]
    worst = strongest(shares(combined.evidence["forget"]), combined.sources)
    direct = shares(score_sheet(half_taught, make_sheet(half_taught.encoder, REQUEST.forget, "forget")))
    assert worst.keys() == direct.keys()
    assert all(worst[i] >= direct[i] for i in direct)
    assert np.mean(list(worst.values())) > np.mean(list(direct.values()))
    for outcome in single:
        one = strongest(shares(outcome.evidence["forget"]), outcome.sources)
        assert all(worst[i] >= one[i] for i in one)


def test_every_row_names_its_source():
    asked = forms(REQUEST.forget, REQUEST["forget_hard"])
    assert len({a.record.id for a in asked}) == len(asked) == 3 * len(REQUEST.forget)
    by_id = {r.id: r for r in REQUEST.forget}
    for row in asked:
        source = by_id[row.source]
        assert row.record.entity == source.entity
        assert row.record.answer == source.answer
        assert (row.record.prompt == source.prompt) == (row.form == IDENTITY)


def test_a_paraphrase_that_says_the_same_is_no_variant():
    record = replace(REQUEST.forget[0], paraphrased_prompts=(REQUEST.forget[0].prompt.upper() + ".", "other"))
    assert [a.form for a in forms([record], [])] == [IDENTITY, REWORDED]
    alone = replace(record, paraphrased_prompts=())
    assert "no forget_hard" in str(WorstCase().missing(Field(Request({"forget": (alone,)}))))


def test_adding_a_form_never_lowers_the_score(half_taught):
    few = Request({**REQUEST.splits, "forget_hard": REQUEST["forget_hard"][:5]})
    more, less = (next(WorstCase().run(half_taught, Field(r))) for r in (REQUEST, few))
    high, low = (strongest(shares(o.evidence["forget"]), o.sources) for o in (more, less))
    # batches differ in padding, so a near tie may fall the other way
    assert np.mean([high[i] for i in low]) >= np.mean(list(low.values())) - 1e-9


# Prefill ----------------------------------------------------------------------------------------------


def test_golden_prefix_success():
    flags = np.array([0, 1, 1, 0, 1, 1], dtype=bool)
    assert prefix_success(flags).tolist() == [False] * 4 + [True] * 3
    assert suffix_share(flags) == pytest.approx(1 / 3)
    assert prefix_success(np.array([True, False])).tolist() == [False, False, True]


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_prefix_success_is_monotone_and_tells_extraction_strength(flags):
    hits = np.array(flags)
    success = prefix_success(hits)
    assert success[-1]
    assert (np.diff(success.astype(int)) >= 0).all()
    shortest = int(success.argmax())
    assert suffix_share(hits) == pytest.approx(1 - shortest / len(hits))
    assert success[0] == hits.all()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_success_is_what_greedy_decoding_does_from_the_prefix(half_taught, k):
    direct = next(Prefill().run(half_taught, Field(REQUEST))).evidence["forget"]
    encoder = half_taught.encoder
    found, expected = [], []
    for record in REQUEST.forget:
        row, encoded = direct.gold[record.id], encoder.encode(record)
        start, left = encoded.ids[: encoded.num_prompt + k], row.num_answer - k
        (text,) = greedy_text(half_taught, [start], max_new_tokens=left)
        rest = encoder.decode(encoded.answer_ids[k : row.num_answer])
        found.append(text == rest)
        expected.append(bool(prefix_success(row.hits[row.answer_span])[k]))
    assert found == expected
    assert k == 0 or len(set(found)) > 1


def test_curve_stands_beside_the_direct_evidence(half_taught):
    direct, *led = Prefill().run(half_taught, Field(REQUEST))
    assert direct.config == {"lead_in": ""}
    curve = direct.details["prefix_success"]
    hits = [row.hits[row.answer_span] for row in direct.evidence["forget"]]
    assert curve[0] == pytest.approx(np.mean([h.all() for h in hits]))
    assert curve == sorted(curve)
    assert curve[-1] == 1
    *led, first, second = led
    assert [o.config["lead_in"] for o in led[: len(LEAD_INS)]] == list(LEAD_INS)
    assert [o.config for o in (first, second)] == [{"gold_prefix": 1}, {"gold_prefix": 2}]
    assert first.aside
    assert np.mean(list(first.values["forget"].values())) == pytest.approx(
        direct.details["prefix_success"][1]
    )
    plain = score_sheet(half_taught, make_sheet(half_taught.encoder, REQUEST.forget, "forget"))
    for a, b in zip(direct.evidence["forget"], plain, strict=True):
        np.testing.assert_array_equal(a.logprobs, b.logprobs)


def test_curve_of_answers_of_different_length_is_monotone():
    from expunge.evidence import Evidence

    subject = make_subject()
    records = [Record("a", "x", "what", "pet of home"), Record("b", "x", "what", "boat")]
    curve = prefix_curve(score_sheet(subject, make_sheet(subject.encoder, records, "forget")))
    assert len(curve) == 4
    assert curve == sorted(curve)
    assert prefix_curve(Evidence("forget", [])) == []


@pytest.mark.parametrize("lead_in", LEAD_INS)
def test_the_gold_answer_is_scored_after_the_lead_in_token_by_token(lead_in):
    encoder = make_subject().encoder
    record = REQUEST.forget[0]
    plain, led = encoder.encode(record), with_lead_in(encoder, record, lead_in)
    assert led.ids[: plain.num_prompt] == plain.ids[: plain.num_prompt]
    assert led.answer_ids == plain.answer_ids
    assert led.has_end == plain.has_end
    assert encoder.decode(led.ids[plain.num_prompt : led.num_prompt]).replace(" ", "") == lead_in.replace(
        " ", ""
    )


def test_raw_text_keeps_its_blank():
    encoder = make_subject().encoder
    raw = Record("r", "x", "what is the home of", " forgeter0homea of forgeter0homeb", style="raw")
    led = with_lead_in(encoder, raw, "The answer is")
    assert encoder.decode(led.answer_ids) == raw.answer.strip()
    assert led.num_prompt == encoder.encode(raw).num_prompt + 3


def test_an_answer_pushed_beyond_the_context_is_marked():
    subject = make_subject()
    record = REQUEST.forget[0]
    room = len(subject.encoder.encode(record).ids)
    tight = Encoder(subject.tokenizer, max_length=room + 1)
    assert not with_lead_in(tight, record, "The").truncated
    led = with_lead_in(tight, record, "The answer is")
    assert led.truncated
    assert not led.has_end
    assert len(led.ids) == room + 1


def test_documents_have_no_start_to_force():
    documents = tuple(Record(r.id, r.entity, "", r.answer) for r in REQUEST.forget)
    assert "documents" in str(Prefill().missing(Field(Request({"forget": documents}))))
    mixed = Request({"forget": (*documents[:3], *REQUEST.forget[3:])})
    direct = next(Prefill().run(make_subject(), Field(mixed)))
    assert list(direct.evidence["forget"].gold) == [r.id for r in REQUEST.forget[3:]]
