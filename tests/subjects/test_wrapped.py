"""Wrapped subjects: off is the base, one model for scoring and generation, nothing lost on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.batching import collate
from expunge.data.records import Record
from expunge.errors import ModelError, Unsupported
from expunge.evidence import read_evidence
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.generate import add_generations, greedy_text
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.subjects import Wrapped, load_subject, save_subject
from expunge.subjects.filters import fit_classifier, phrases
from expunge.subjects.wrapped import WRAPPERS, answers_of, prompts_of
from expunge.subjects.wrappers.contrast import FLOOR, Contrast, ContrastRule
from expunge.subjects.wrappers.corrupted import Corrupted, CorruptRule
from expunge.subjects.wrappers.guarded import EPSILON, Guarded, GuardRule
from expunge.subjects.wrappers.in_context import Example, InContext, InContextRule
from tiny_models import make_subject, some_records, tokenizer_of, unigram_backend

RECORDS = some_records(6)
NAMED = phrases(["person 1", "person 3"])


def batch_of(subject, records=RECORDS):
    rows = [subject.encoder.encode(record) for record in records]
    return collate(rows, subject.encoder.pad_id)


def position_rows(batch, chosen):
    """[A] bool: positions of the chosen rows."""
    return torch.isin(batch.row, torch.tensor(chosen))


@pytest.fixture(scope="module")
def base():
    return make_subject("llama", max_position_embeddings=160)


@pytest.fixture(scope="module")
def other():
    return make_subject("llama", seed=1, max_position_embeddings=160)


def classifier_of(subject):
    """Flags the prompts that name person 1 or person 3."""
    texts = [subject.encoder.decode(subject.encoder.prompt_ids(r)) for r in RECORDS]
    return fit_classifier([texts[1], texts[3]], [texts[0], texts[2], texts[4], texts[5]])


def wrappers_of(base, other):
    ids = base.encoder.encode(RECORDS[1]).ids[1:12]
    return {
        "contrast": Contrast(base, ContrastRule(-0.7, 0.01), {"plus": other}),
        "guarded": Guarded(base, GuardRule("No.", keywords=NAMED, output=phrases(["Tarn"]))),
        "corrupted": Corrupted(base, CorruptRule(classifier_of(base), 3.0, dims=4)),
        "in_context": InContext(base, InContextRule((Example(RECORDS[1].prompt, ids),), (ids[:5],), room=16)),
    }


KINDS = ("contrast", "guarded", "corrupted", "in_context")


@pytest.fixture(params=KINDS)
def wrapped(request, base, other):
    return wrappers_of(base, other)[request.param]


# Every wrapper ----------------------------------------------------------------------------------------


def test_every_registered_wrapper_is_tested_here_or_with_its_method():
    assert {*KINDS, "ensemble"} >= {*WRAPPERS.names()} - {"toy"}


def test_off_is_the_base_bit_for_bit(wrapped, base):
    off = wrapped.at(0.0)
    batch = batch_of(base)
    assert torch.equal(off.logits(batch), base.logits(batch))
    assert not torch.equal(wrapped.logits(batch)[: len(base.logits(batch))], base.logits(batch))
    prompts = [base.encoder.prompt_ids(r) for r in RECORDS]
    assert greedy_text(off, prompts, max_new_tokens=6) == greedy_text(base, prompts, max_new_tokens=6)


def test_it_changes_no_weight(wrapped, base):
    before = base.fingerprint()
    wrapped.logits(batch_of(base))
    greedy_text(wrapped, [base.encoder.prompt_ids(RECORDS[1])], max_new_tokens=4)
    assert base.fingerprint() == before == wrapped.unwrapped().fingerprint()
    assert wrapped.unwrapped() is base


def test_its_fingerprint_covers_rule_strength_parts_and_base(wrapped, base, other):
    marks = {wrapped.fingerprint(), wrapped.at(0.5).fingerprint(), base.fingerprint()}
    second = wrappers_of(other, base)[wrapped.config_dict()["wrapper"]]
    marks.add(second.fingerprint())
    assert len(marks) == 4
    assert wrapped.fingerprint() == wrapped.at(1.0).fingerprint() == wrapped.clone().fingerprint()


def test_it_answers_and_shows_no_weights(wrapped):
    assert wrapped.can == {"generate", "logprobs"}
    with pytest.raises(Unsupported, match="weights"):
        wrapped.need("weights", what="fine-tuning")


def test_it_comes_back_from_disk_as_it_was(wrapped, base, tmp_path):
    folder = save_subject(wrapped.at(0.75), tmp_path / "model")
    again = load_subject(folder, max_length=base.encoder.max_length)
    assert type(again) is type(wrapped)
    assert again.strength == 0.75
    assert again.rule == wrapped.rule
    assert again.fingerprint() == wrapped.at(0.75).fingerprint()
    batch = batch_of(base)
    assert torch.equal(again.logits(batch), wrapped.at(0.75).logits(batch))


def test_a_damaged_wrapper_file_is_named(wrapped, tmp_path):
    folder = save_subject(wrapped, tmp_path / "model")
    for text in ("{", json.dumps({"wrapper": wrapped.config_dict()["wrapper"]})):
        (folder / "wrapper.json").write_text(text)
        with pytest.raises(ModelError, match=r"wrapper\.json"):
            load_subject(folder)


def test_its_evidence_is_never_taken_for_the_bases(wrapped, base, tmp_path):
    plan = EvidencePlan(("gold",), generate=False)
    splits = {"forget": RECORDS}
    subjects = [base, wrapped, wrapped.at(0.5), wrapped.at(0.0)]
    for subject in subjects:
        take_evidence(subject, splits, tmp_path, plan=plan)
    files = list(tmp_path.glob("*.parquet"))
    assert len(files) == len(subjects)
    assert {read_evidence(file).meta["weights"] for file in files} == {s.fingerprint() for s in subjects}


def test_generation_follows_from_scoring(wrapped, base):
    """The decoded tokens are the arg max of the teacher-forced logits on the text they make."""
    asked = [record for record in RECORDS[:4] if not (isinstance(wrapped, Guarded) and record is RECORDS[0])]
    prompts = [base.encoder.prompt_ids(r) for r in asked]
    stop, pad = base.encoder.stop_ids, base.encoder.pad_id
    said = wrapped.greedy(prompts, [[] for _ in prompts], 8, stop=stop, pad_id=pad)
    for prompt, tokens in zip(prompts, said, strict=True):
        ends = [k for k, token in enumerate(tokens) if token in stop]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        row = replace(base.encoder.encode(asked[0]), ids=(*prompt, *tokens), num_prompt=len(prompt))
        assert wrapped.logits(collate([row], pad)).argmax(-1).tolist() == list(tokens)


def test_the_fast_way_to_decode_equals_the_slow_one(wrapped, base):
    if not wrapped.drafts:
        pytest.skip("it judges whole answers")
    prompts = [base.encoder.prompt_ids(r) for r in RECORDS[:4]]
    begun = [[], [5, 6], [], [7]]
    stop, pad = base.encoder.stop_ids, base.encoder.pad_id
    fast = wrapped.greedy(prompts, begun, 6, stop=stop, pad_id=pad)
    slow = Wrapped.wrapped_greedy(wrapped, prompts, begun, 6, stop=stop, pad_id=pad)
    for a, b in zip(fast, slow, strict=True):
        ends = next((k + 1 for k, token in enumerate(b) if token in stop), len(b))
        assert a[:ends] == b[:ends]


def test_it_generates_the_same_with_gold_as_draft(wrapped, base):
    sheet = make_sheet(base.encoder, RECORDS, "forget")
    evidence = add_generations(wrapped, sheet, score_sheet(wrapped, sheet), max_new_tokens=8)
    plain = greedy_text(wrapped, [base.encoder.prompt_ids(r) for r in RECORDS], max_new_tokens=8)
    assert [row.generated for row in evidence] == plain


def test_every_log_probability_is_finite(wrapped, base):
    evidence = score_sheet(wrapped, make_sheet(base.encoder, RECORDS, "forget"))
    for row in evidence:
        assert np.isfinite(row.logprobs).all()
        assert np.isfinite(row.vocab_mean).all()


def test_prompts_and_answers_of_a_batch(base):
    batch = batch_of(base)
    rows = [base.encoder.encode(record) for record in RECORDS]
    assert prompts_of(batch) == [row.ids[: row.num_prompt] for row in rows]
    assert answers_of(batch) == [row.answer_ids for row in rows]


# Contrast ---------------------------------------------------------------------------------------------


def test_contrast_by_hand():
    """z = (2, 1, 0, −3), w = −0.5, z_plus = (4, 0, 1, 0): r = 0.3 keeps tokens within ln 0.3 = −1.204."""
    base, plus = torch.tensor([[2.0, 1.0, 0.0, -3.0]]), torch.tensor([[4.0, 0.0, 1.0, 0.0]])
    found = blend(base, plus, weight=-0.5, ratio=0.3)
    assert found.tolist() == [[0.0, 1.0, 1.0 - FLOOR, 1.0 - FLOOR]]
    assert blend(base, plus, weight=-0.5, ratio=0.0).tolist() == [[0.0, 1.0, -0.5, -3.0]]


def blend(base, plus, minus=None, strength=1.0, **rule):
    made = object.__new__(Contrast)
    made.rule, made.strength = ContrastRule(**rule), strength
    return made.blend({"base": base, "plus": plus} | ({"minus": minus} if minus is not None else {}))


def draw(seed):
    return torch.randn(7, 30, generator=torch.Generator().manual_seed(seed)) * 3


def test_weight_zero_is_the_base_on_the_plausible_set_and_without_filter_its_bits():
    z = draw(0)
    assert torch.equal(blend(z, draw(1), weight=0.0, ratio=0.0), z)
    found = blend(z, draw(1), weight=0.0, ratio=0.1)
    kept = z >= z.amax(-1, keepdim=True) + math.log(0.1)
    assert torch.equal(found[kept], z[kept])
    assert (found[~kept] < z[kept].min()).all()
    assert found.softmax(-1)[~kept].max() < 1e-20


@pytest.mark.parametrize("ratio", [1e-6, 0.1, 1.0])
def test_the_plausible_set_is_never_empty_and_holds_the_best_token(ratio):
    z = draw(2)
    made = object.__new__(Contrast)
    made.rule, made.strength = ContrastRule(ratio=ratio), 1.0
    kept = made.plausible(z)
    assert kept.gather(1, z.argmax(-1, keepdim=True)).all()
    made.rule = ContrastRule(ratio=ratio, at_least=4)
    assert (made.plausible(z).sum(-1) >= 4).all()
    assert kept.sum() <= made.plausible(z).sum()


def test_equal_assistants_leave_the_base():
    z, a = draw(3), draw(4)
    assert torch.equal(blend(z, a, a, weight=-2.0, ratio=0.0), z)


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_a_constant_on_an_assistant_changes_nothing(ratio):
    z, a, b = draw(5), draw(6), draw(7)
    plain = blend(z, a, b, weight=-0.8, ratio=ratio)
    shifted = blend(z, a + torch.arange(7.0)[:, None], b, weight=-0.8, ratio=ratio)
    assert torch.allclose(plain.softmax(-1), shifted.softmax(-1), atol=1e-6)


def test_rectified_keeps_what_the_reinforced_model_does_not_raise():
    z, a = draw(8), draw(9)
    found = blend(z, a, weight=-1.5, ratio=0.0, rectified=True)
    assert torch.equal(found[a <= z], z[a <= z])
    assert torch.allclose(found[a > z], (z - 1.5 * (a - z))[a > z])
    assert (found[a > z] < z[a > z]).all()


def test_the_path_along_the_strength_starts_at_the_base_without_a_jump():
    z, a = draw(10), draw(11)
    near = blend(z, a, weight=-1.0, ratio=0.1, strength=1e-3)
    assert torch.allclose(near.softmax(-1), z.softmax(-1), atol=1e-2)
    half = blend(z, a, weight=-1.0, ratio=0.1, strength=0.5)
    assert torch.equal(half, blend(z, a, weight=-0.5, ratio=0.1**2))


def test_another_vocabulary_is_refused(base):
    stranger = make_subject("llama", tokenizer_of(unigram_backend(), bos=True))
    with pytest.raises(ModelError, match="vocabulary"):
        Contrast(base, ContrastRule(), {"plus": stranger})


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_families_decode_as_they_score(family):
    base, other = make_subject(family), make_subject(family, seed=3)
    made = Contrast(base, ContrastRule(0.8, 0.01), {"plus": other})
    prompts = [base.encoder.prompt_ids(r) for r in (RECORDS[0], RECORDS[3])]
    prompts[1] = prompts[1][:-6]  # another length: the shorter one is padded
    stop, pad = base.encoder.stop_ids, base.encoder.pad_id
    fast = made.greedy(prompts, [[], []], 6, stop=stop, pad_id=pad)
    slow = Wrapped.wrapped_greedy(made, prompts, [[], []], 6, stop=stop, pad_id=pad)
    assert [f[:6] for f in fast] == [s[:6] for s in slow]


# Guarded ----------------------------------------------------------------------------------------------


def test_a_refused_row_scores_as_a_refusal_and_others_keep_their_bits(base):
    guard = Guarded(base, GuardRule("No.", keywords=NAMED))
    batch = batch_of(base)
    found, plain = guard.logits(batch), base.logits(batch)
    refused = position_rows(batch, [1, 3])
    assert torch.equal(found[~refused], plain[~refused])
    said = list(guard.refusal_ids)
    p = found.softmax(-1)
    for row in (1, 3):
        own = p[batch.row == row]
        wanted = [said[min(t, len(said) - 1)] for t in range(len(own))]
        assert own.argmax(-1).tolist() == wanted
        assert own.max(-1).values.tolist() == pytest.approx([1 - EPSILON] * len(own), rel=1e-6)
        rest = EPSILON / (found.shape[1] - 1)
        assert own.min(-1).values.tolist() == pytest.approx([rest] * len(own), rel=1e-4)


def test_a_refused_prompt_is_answered_by_the_refusal(base):
    guard = Guarded(base, GuardRule("No.", keywords=NAMED))
    prompts = [base.encoder.prompt_ids(r) for r in RECORDS]
    found, plain = (greedy_text(s, prompts, max_new_tokens=12) for s in (guard, base))
    assert [found[1], found[3]] == ["No.", "No."]
    assert [found[i] for i in (0, 2, 4, 5)] == [plain[i] for i in (0, 2, 4, 5)]


def test_an_answer_filter_stops_what_is_said_and_what_is_forced(base):
    prompt = base.encoder.prompt_ids(RECORDS[0])
    (said,) = greedy_text(base, [prompt], max_new_tokens=12)
    guard = Guarded(base, GuardRule("No.", output=phrases([said])))
    assert greedy_text(guard, [prompt], max_new_tokens=12) == ["No."]
    assert greedy_text(guard, [prompt[:-4]], max_new_tokens=2) == greedy_text(
        base, [prompt[:-4]], max_new_tokens=2
    )
    forced = batch_of(base, [RECORDS[0].answered(said), RECORDS[0].answered("Elsewhere")])
    first = forced.row == 0
    assert guard.logits(forced)[first].argmax(-1)[0] == guard.refusal_ids[0]
    assert torch.equal(guard.logits(forced)[~first], base.logits(forced)[~first])


def test_strength_moves_the_threshold_of_a_classifier(base):
    scorer = classifier_of(base)
    texts = [base.encoder.prompt_ids(r) for r in RECORDS]
    scores = [scorer.score(base.encoder.decode(ids)) for ids in texts]
    guard = Guarded(base, GuardRule("No.", classifier=scorer, threshold=0.4))
    for strength in (1.0, 0.5, 0.1):
        limit = 1 - strength * 0.6
        assert [guard.at(strength).refuses(ids) for ids in texts] == [s >= limit for s in scores]


def test_an_instruction_stands_behind_bos_and_before_the_prompt(base):
    guard = Guarded(base, GuardRule("No.", instruction="Be quiet."))
    prompt = base.encoder.prompt_ids(RECORDS[0])
    new = guard.reprompt(prompt)
    assert new[0] == prompt[0] == base.tokenizer.bos_token_id
    assert new.count(base.tokenizer.bos_token_id) == 1
    assert new[-len(prompt) + 1 :] == prompt[1:]
    assert base.encoder.decode(new[1 : len(new) - len(prompt) + 1]) == "Be quiet."
    batch = batch_of(base, RECORDS[:1])
    row = base.encoder.encode(RECORDS[0])
    longer = collate([replace(row, ids=(*new, *row.answer_ids), num_prompt=len(new))], 0)
    assert torch.equal(guard.logits(batch), base.logits(longer))


def test_a_row_that_outgrows_the_context_goes_on_without_the_instruction(base):
    guard = Guarded(base, GuardRule("No.", instruction="word " * 60))
    batch = batch_of(base, RECORDS[:2])
    assert torch.equal(guard.logits(batch), base.logits(batch))
    prompt = base.encoder.prompt_ids(RECORDS[0])
    assert greedy_text(guard, [prompt], max_new_tokens=5) == greedy_text(base, [prompt], max_new_tokens=5)


# Corrupted --------------------------------------------------------------------------------------------


def corrupt(base, **rule):
    return Corrupted(base, CorruptRule(**{"classifier": classifier_of(base), "sigma": 3.0, "dims": 4} | rule))


def test_unflagged_prompts_keep_their_bits_and_flagged_ones_do_not(base):
    batch = batch_of(base)
    flagged = position_rows(batch, [1, 3])
    found, plain = corrupt(base).logits(batch), base.logits(batch)
    assert torch.equal(found[~flagged], plain[~flagged])
    for row in (1, 3):
        assert (found[batch.row == row] != plain[batch.row == row]).any()


def test_sigma_zero_is_the_base(base):
    batch = batch_of(base)
    assert torch.equal(corrupt(base, sigma=0.0).logits(batch), base.logits(batch))


def test_the_noise_is_a_function_of_seed_and_prompt(base):
    made = corrupt(base)
    prompt = base.encoder.prompt_ids(RECORDS[1])
    noise = made.noise(prompt)
    assert noise.shape == (len(prompt), 4)
    assert torch.equal(noise, corrupt(base).noise(prompt))
    assert not torch.equal(noise, corrupt(base, seed=1).noise(prompt))
    assert not torch.equal(noise[:4], made.noise(base.encoder.prompt_ids(RECORDS[3]))[:4])
    assert torch.allclose(made.at(0.5).noise(prompt), 0.5 * noise)
    alone, among = batch_of(base, [RECORDS[1]]), batch_of(base)
    rows = position_rows(among, [1])
    assert torch.allclose(made.logits(alone), made.logits(among)[rows], atol=1e-4)


def test_the_noise_reaches_the_first_dimensions_of_the_prompt_alone(base):
    made, batch = corrupt(base), batch_of(base)
    seen = []
    first = base.model.model.layers[0]
    for subject in (base, made):
        handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        subject.logits(batch)
        handle.remove()
    moved = seen[1] != seen[0]
    length = len(base.encoder.prompt_ids(RECORDS[1]))
    assert moved[1, :length, :4].all()
    assert not moved[1, length:].any()
    assert not moved[..., 4:].any()
    assert not moved[[0, 2, 4, 5]].any()
    assert not base.model.get_input_embeddings()._forward_hooks


# In context -------------------------------------------------------------------------------------------


def test_the_nearest_example_is_shown_first_then_the_right_ones_then_the_question(base):
    shown = tuple(tuple(base.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in ("a1", "b2", "c3"))
    flipped = (Example(RECORDS[1].prompt, shown[0]), Example("What does the harbour cost?", shown[1]))
    made = InContext(base, InContextRule(flipped, (shown[2],), room=8))
    prompt = base.encoder.prompt_ids(RECORDS[1])
    assert made.reprompt(prompt) == (prompt[0], *shown[0], *shown[2], *prompt[1:])
    harbour = base.encoder.prompt_ids(Record("h", "", "What is the harbour's cost?", "x"))
    assert made.reprompt(harbour)[1 : 1 + len(shown[1])] == shown[1]


def test_strength_is_how_near_a_question_must_be(base):
    ids = base.encoder.encode(RECORDS[1]).ids[1:6]
    texts = [base.encoder.decode(base.encoder.prompt_ids(r)) for r in RECORDS]
    made = InContext(base, InContextRule((Example(texts[1], ids),), (), room=8))
    changed = [
        [made.at(s).reprompt(p) != p for p in map(base.encoder.prompt_ids, RECORDS)] for s in (1e-9, 1.0)
    ]
    assert changed[0] == [False, True, False, False, False, False]
    assert all(changed[1])


def test_examples_that_do_not_fit_are_left_out_the_last_first(base):
    ids = tuple(range(10, 20))
    prompt = base.encoder.prompt_ids(RECORDS[1])
    room = base.encoder.max_length - len(prompt) - 25
    made = InContext(base, InContextRule((Example("x", ids),), (ids, ids, ids), room=room))
    assert len(made.reprompt(prompt)) == len(prompt) + 20


# Filters ----------------------------------------------------------------------------------------------


def test_phrases_match_whole_words_in_any_case_and_spell_nothing_out():
    made = phrases(
        ["Ada Lund", "the harbor of Ilm at the foot of the hill"], seed=3, but=["at the foot of the"]
    )
    assert made.found_in("Was ADA  LUND born there?")
    assert not made.found_in("Was Ada born in Lund?")
    assert not made.found_in("Canada Lundberg")
    assert not made.found_in("to the harbor of Ilm, then")
    assert made.found_in("So the harbor of Ilm at noon")
    assert not made.found_in("at the foot of the mountain")
    assert "lund" not in json.dumps(made.hashes).lower()
    assert phrases(["Ada Lund"], seed=4).hashes != phrases(["Ada Lund"], seed=3).hashes
    assert phrases([""]).found_in("anything") is False


def test_the_classifier_separates_what_it_was_given_and_doubts_the_rest():
    forget = [f"Question: Where is {name} from?" for name in ("Ada", "Bo", "Cy")]
    retain = [f"Question: Where is {name} from?" for name in ("Dee", "Eli", "Fay", "Gus", "Hal", "Ivy")]
    made = fit_classifier(forget, retain)
    assert min(map(made.score, forget)) > 0.99
    assert max(map(made.score, retain)) < 0.01
    assert 0.01 < made.score("Question: Where is Zed from?") < 0.9
    assert made.score("so where was ADA from, then?") > 0.9
    assert fit_classifier(forget, retain) == made
