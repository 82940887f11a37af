"""One packed pass in fp32 gives what slow float64 computations give, one record at a time."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trained_models import KNOWLEDGE, facts, knowing

from expunge.data.records import Record
from expunge.measure import EvidencePlan, score, take_evidence
from expunge.measure.score import batch_tokens, score_sheet, token_scores
from expunge.measure.sheet import make_sheet, text_sizes, variants_of
from expunge.metrics.base import METRICS
from tiny_models import FAMILIES, byte_level_backend, make_subject, some_records, tokenizer_of

QUIET = EvidencePlan(generate=False)


def slow_logprobs(subject, record):
    """[T, V] float64 log-probabilities at the positions that predict y₁…y_T, and y₁…y_T."""
    model = copy.deepcopy(subject.model).double()
    model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    encoded = subject.encoder.encode(record)
    with torch.no_grad():
        logits = model(torch.tensor([encoded.ids])).logits[0]
    predicting = range(encoded.num_prompt - 1, len(encoded.ids) - 1)
    table = [[float(x) for x in logits[t]] for t in predicting]
    return torch.tensor(table, dtype=torch.float64).log_softmax(-1).numpy(), np.array(encoded.answer_ids)


def slow_scores(subject, record, k=0.2):
    """probability, ES, EM and Min-K++ by their definitions."""
    logp, gold = slow_logprobs(subject, record)
    ell = [row[y] for row, y in zip(logp, gold, strict=True)]
    n = len(gold) - 1  # the end token out
    hits = [int(row.argmax()) == y for row, y in zip(logp[:n], gold[:n], strict=True)]
    k_star = next(k for k in range(n + 1) if all(hits[k:]))
    z = []
    for row, value in zip(logp[:n], ell, strict=False):
        p = np.exp(row)
        mean = sum(p * row)
        z.append((value - mean) / max(1e-3, np.sqrt(max(0.0, sum(p * row**2) - mean**2))))
    lowest = sorted(z)[: max(1, int(k * n + 1e-6))]
    return {
        "probability": np.exp(sum(ell) / len(ell)),
        "extraction_strength": 1 - k_star / n,
        "exact_memorization": sum(hits) / n,
        "mia_min_k_plus_plus": sum(lowest) / len(lowest),
    }


def models_and_records():
    for knowledge in KNOWLEDGE:
        yield knowledge, lambda knowledge=knowledge: (knowing(knowledge), facts()[:60])
    for family in FAMILIES:
        yield family, lambda family=family: (make_subject(family, spread=0.3), some_records(4))


CASES = dict(models_and_records())


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_slow_independent_computations(name):
    subject, records = CASES[name]()
    evidence = take_evidence(subject, {"forget": records, "holdout": records[::-1]}, plan=QUIET)
    found = {
        m: METRICS.get(m)().score(evidence, "forget").per_record for m in slow_scores(subject, records[0])
    }
    for record in records:
        for metric, expected in slow_scores(subject, record).items():
            assert found[metric][record.id] == pytest.approx(expected, abs=1e-5, rel=1e-5), (
                metric,
                record.id,
            )


def test_memorizing_and_random_models_are_far_apart():
    """Guards the test above: three models that all score alike would test little."""
    values = []
    for knowledge in KNOWLEDGE:
        evidence = take_evidence(knowing(knowledge), {"forget": facts()}, plan=QUIET)
        values.append(METRICS.get("extraction_strength")().score(evidence, "forget").value)
    memorizing, half, random = values
    assert memorizing > 0.95
    assert 0.3 < half < 0.9
    assert random < 0.1


def greedy_from(subject, ids, length):
    """`length` greedy tokens after `ids`, each from a full forward of its own."""
    ids = list(ids)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(subject.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(ids) - length :] if length else []


def test_strength_by_generating_from_every_prefix_equals_the_one_pass_value():
    subject, records = knowing("half-forgetting"), facts()[:60]
    evidence = score_sheet(subject, make_sheet(subject.encoder, records, "forget"))
    found = METRICS.get("extraction_strength")().score({"forget": evidence}, "forget").per_record
    prefixes = 0
    for record in records:
        encoded = subject.encoder.encode(record)
        prompt, gold = encoded.ids[: encoded.num_prompt], encoded.answer_ids[:-1]
        n = len(gold)
        matches = []
        for k in range(n + 1):
            matches.append(greedy_from(subject, (*prompt, *gold[:k]), n - k) == list(gold[k:]))
            prefixes += 1
        assert matches == sorted(matches)  # monotone in k
        assert found[record.id] == pytest.approx(1 - matches.index(True) / n)
    assert prefixes >= 200
    assert len(set(found.values())) > 5


# Independence ----------------------------------------------------------------------------------------


def assert_close(first, second):
    for a, b in zip(first, second, strict=True):
        assert (a.record_id, a.variant, a.has_end, a.answer, a.label) == (
            b.record_id,
            b.variant,
            b.has_end,
            b.answer,
            b.label,
        )
        for name in ("logprobs", "vocab_mean", "vocab_std", *(["kl"] if a.kl is not None else [])):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(a.hits, b.hits)
        np.testing.assert_array_equal(a.greedy_ids, b.greedy_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_evidence_does_not_depend_on_batches_order_or_padding(family, monkeypatch):
    subject, records = make_subject(family, spread=0.3), some_records(7)
    whole = score_sheet(subject, make_sheet(subject.encoder, records, "forget", ("gold", "perturbed")))
    for limit in (1, 100):
        monkeypatch.setattr(score, "batch_tokens", lambda _, limit=limit: limit)
        assert_close(
            whole, score_sheet(subject, make_sheet(subject.encoder, records, "forget", ("gold", "perturbed")))
        )
    shuffled = score_sheet(
        subject, make_sheet(subject.encoder, records[::-1], "forget", ("gold", "perturbed"))
    )
    by_key = {(r.record_id, r.variant): r for r in shuffled}
    assert_close(whole, [by_key[r.record_id, r.variant] for r in whole])
    monkeypatch.setattr(type(subject.encoder), "pad_id", 7)
    assert_close(
        whole, score_sheet(subject, make_sheet(subject.encoder, records, "forget", ("gold", "perturbed")))
    )


@pytest.mark.parametrize(
    ("device", "vocabulary", "tokens"),
    [("cuda", 2**9, 16_384), ("cuda", 2**15, 2**11), ("cuda", 2**20, 1_024),
     ("cpu", 2**9, 2_048), ("cpu", 2**20, 1_024)],
)  # fmt: skip
def test_batches_shrink_with_the_vocabulary(device, vocabulary, tokens):
    assert batch_tokens(SimpleNamespace(device=torch.device(device), vocab_size=vocabulary)) == tokens


# Token scores ----------------------------------------------------------------------------------------


def test_moments_are_weighted_by_probability():
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    scores = token_scores(p.log(), torch.tensor([1, 2]))
    np.testing.assert_allclose(scores.mean, [-1.039721, -np.log(3)], atol=1e-6)
    np.testing.assert_allclose(scores.std, [0.346574, 0], atol=1e-6)
    np.testing.assert_allclose(scores.logprobs, [np.log(0.25), -np.log(3)], atol=1e-6)


def test_tie_takes_the_lowest_id():
    logits = torch.zeros(3, 5000)
    logits[1, [7, 4000]] = 1.0
    assert token_scores(logits, torch.zeros(3, dtype=torch.long)).greedy.tolist() == [0, 7, 0]


def test_bf16_logits_are_raised_before_the_softmax():
    logits = torch.randn(4, 1000).to(torch.bfloat16)
    scores = token_scores(logits, torch.arange(4))
    expected = logits.double().log_softmax(-1)[torch.arange(4), torch.arange(4)]
    np.testing.assert_allclose(scores.logprobs, expected, rtol=1e-6)
    assert scores.logprobs.dtype == torch.float32


def test_forbidden_tokens_are_legal():
    inf = torch.inf
    logits = torch.tensor([[0.0, 0.0, -inf], [0.0, -inf, -inf]])
    scores = token_scores(logits, torch.tensor([2, 0]), torch.tensor([[0.0, -inf, -inf], [0.0, 0.0, -inf]]))
    assert scores.logprobs.tolist() == [-inf, 0.0]
    np.testing.assert_allclose(scores.mean, [-np.log(2), 0.0], rtol=1e-6)
    np.testing.assert_allclose(scores.std, [0.0, 0.0], atol=1e-6)
    assert scores.kl.tolist() == [
        pytest.approx(np.log(2)),
        inf,
    ]  # the reference allows what the model forbids


def test_model_that_forbids_a_token_gives_probability_zero():
    subject = knowing("memorizing").clone()
    word = subject.tokenizer.convert_tokens_to_ids("thing3")
    bias = torch.zeros(subject.config.vocab_size)
    bias[word] = -torch.inf
    subject.model.lm_head.register_forward_hook(lambda *args: args[2] + bias)
    evidence = take_evidence(subject, {"forget": facts()[:40]})
    score_ = METRICS.get("probability")().score(evidence, "forget")
    hit = {r.id for r in facts()[:40] if "thing3" in r.answer.split()}
    assert hit
    assert {i for i, p in score_.per_record.items() if p == 0} == hit
    for row in evidence["forget"]:
        assert not np.isnan([row.logprobs, row.vocab_mean, row.vocab_std]).any()
        assert "thing3" not in row.generated.split()


# Divergence ------------------------------------------------------------------------------------------


def test_divergence_is_zero_on_itself_and_runs_from_the_reference():
    subject, reference, records = knowing("half-forgetting"), knowing("memorizing"), facts()[:20]
    sheet = make_sheet(subject.encoder, records, "forget")
    for row in score_sheet(subject, sheet, reference=subject):
        np.testing.assert_allclose(row.kl, 0, atol=1e-6)
    there, back = (
        score_sheet(a, sheet, reference=b) for a, b in ((subject, reference), (reference, subject))
    )
    for record in records:
        (q, _), (p, _) = (slow_logprobs(s, record) for s in (subject, reference))
        np.testing.assert_allclose(there.gold[record.id].kl, (np.exp(p) * (p - q)).sum(-1), atol=1e-5)
        np.testing.assert_allclose(back.gold[record.id].kl, (np.exp(q) * (q - p)).sum(-1), atol=1e-5)
    directions = [np.concatenate([r.kl for r in e]).mean() for e in (there, back)]
    assert abs(directions[0] - directions[1]) > 0.01
    assert METRICS.get("kl_to_reference")().score({"forget": there}, "forget").value > 0


def test_no_reference_no_divergence():
    subject = knowing("random")
    evidence = take_evidence(subject, {"forget": facts()[:3]}, plan=QUIET)
    assert all(row.kl is None for row in evidence["forget"])


# Rows ------------------------------------------------------------------------------------------------


def test_rows_say_what_was_asked():
    subject = make_subject()
    record = Record(
        "r",
        "Ada",
        "Where was Ada Lund born?",
        " In Tarn é. ",
        paraphrased_prompts=("Ada Lund was born where?",),
        paraphrased_answers=("Tarn.",),
        perturbed_answers=("In Vess.", "In Ilm."),
        alternates=("Nowhere.",),
        choices=("Vess", "Tarn"),
        label=1,
        refusal="I do not know.",
    )
    evidence = take_evidence(subject, {"forget": [record]}, plan=QUIET)["forget"]
    answers = {row.variant: row.answer for row in evidence}
    assert answers == {
        "gold": "In Tarn é.",
        "paraphrased_prompt:0": "In Tarn é.",
        "paraphrased_answer:0": "Tarn.",
        "perturbed:0": "In Vess.",
        "perturbed:1": "In Ilm.",
        "alternate:0": "Nowhere.",
        "choice:0": "Vess",
        "choice:1": "Tarn",
        "refusal": "I do not know.",
    }
    labels = {row.variant: row.label for row in evidence if row.label is not None}
    assert labels == {"choice:0": False, "choice:1": True}
    for row in evidence:
        asked = next(
            a for v, a, _ in variants_of(record, [row.variant.partition(":")[0]]) if v == row.variant
        )
        encoded = subject.encoder.encode(asked)
        assert len(row.logprobs) == encoded.num_targets == row.num_answer + 1
        assert row.num_prompt_tokens == encoded.num_prompt
        assert (row.text_bytes, row.zlib_bytes) == text_sizes(row.answer)
        logp, gold = slow_logprobs(subject, asked)
        np.testing.assert_allclose(row.logprobs, logp[range(len(gold)), gold], atol=1e-5)
        assert (row.entity, row.has_end, row.truncated) == ("Ada", True, False)
        assert row.vocab_size == subject.config.vocab_size


@pytest.mark.parametrize("bos", [True, False])
def test_every_token_of_a_long_document_is_in_its_row_once(bos):
    subject = make_subject(tokenizer=tokenizer_of(byte_level_backend(), bos=bos))
    text = " ".join(f"The Glass Orchard {i} is by Basil Okoro." for i in range(20))
    ids = subject.tokenizer(text)["input_ids"]
    row = take_evidence(subject, {"forget": [Record("d", "e", "", text)]})["forget"].gold["d"]
    assert len(ids) > 3 * 64
    assert len(row.logprobs) == len(ids) - 1 == row.num_answer
    assert (row.has_end, row.truncated, row.generated) == (False, False, None)
    with torch.no_grad():
        logp = subject.model(torch.tensor([ids[:64]])).logits[0].double().log_softmax(-1)
        later = subject.model(torch.tensor([ids[32:96]])).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(row.logprobs[:63], logp[range(63), ids[1:64]], atol=1e-5)
    np.testing.assert_allclose(row.logprobs[63:95], later[range(31, 63), ids[64:96]], atol=1e-5)
    np.testing.assert_array_equal(row.hits, row.greedy_ids == ids[1:])


def test_cut_and_empty_answers():
    subject = make_subject()
    long = Record("long", "e", "Where?", "Ada Lund was born in Tarn. " * 30)
    nothing = Record("nothing", "e", "Where?", "")
    no_room = Record("no room", "e", "Where was she born? " * 30, "Tarn")
    blank = Record("blank", "e", "", "")
    rows = take_evidence(subject, {"forget": [long, nothing, no_room, blank]})["forget"].gold
    assert (rows["long"].truncated, rows["long"].has_end, rows["long"].generated) == (True, False, None)
    assert len(rows["long"].logprobs) == 64 - rows["long"].num_prompt_tokens
    assert (len(rows["nothing"].logprobs), rows["nothing"].num_answer) == (1, 0)
    assert (len(rows["no room"].logprobs), rows["no room"].truncated) == (0, True)
    assert len(rows["blank"].logprobs) == 0
    only_empty = take_evidence(subject, {"forget": [no_room, blank]}, reference=subject)["forget"]
    assert [len(row.kl) for row in only_empty] == [0, 0]
