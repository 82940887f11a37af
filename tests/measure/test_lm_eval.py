"""Running text in windows, and the bridge to lm-evaluation-harness."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from trained_models import facts, knowing

from expunge.data.encoding import Encoder
from expunge.errors import MissingDependency, NotComputable, Unsupported
from expunge.measure import lm_eval as bridge
from expunge.measure.corpus import packed_perplexity, strided, text_ids
from expunge.measure.lm_eval import Bridge, evaluate
from expunge.subjects import Subject
from tiny_models import CORPUS, byte_level_backend, make_subject, tokenizer_of, unigram_backend


def asks(*arguments):
    """Requests as the harness makes them."""
    return [SimpleNamespace(args=args) for args in arguments]


def slow_logprob(subject, ids, start):
    """log p of ids[start:], one pass without batch or padding, and whether each is the arg max."""
    with torch.no_grad():
        logp = subject.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    each = [logp[t - 1, ids[t]] for t in range(start, len(ids))]
    greedy = [int(logp[t - 1].argmax()) == ids[t] for t in range(start, len(ids))]
    return float(sum(each)), all(greedy)


def short(subject, context):
    return Subject(subject.model, subject.tokenizer, Encoder(subject.tokenizer, max_length=context))


# Running text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 5, 8, 9, 16, 23])
def test_strided_windows_score_each_token_once(length):
    ids = list(range(length))
    rows = strided(ids, 8, 3)
    scored = [token for row in rows for token in row.ids[row.num_prompt :]]
    assert scored == ids[1:]
    assert all(len(row.ids) == 8 for row in rows[1:])
    assert all(row.num_prompt >= 5 for row in rows[1:])


def test_packed_corpus_last_empty_chunk_is_harmless():
    """A text that ends with a window has no further one."""
    assert len(strided(range(8), 8, 4)) == 1
    assert [row.num_targets for row in strided(range(9), 8, 4)] == [7, 1]


def test_packed_perplexity_is_that_of_the_whole_text():
    subject = make_subject(spread=0.3)
    whole = packed_perplexity(subject, CORPUS[:1])
    ids = text_ids(subject, CORPUS[0])
    assert len(ids) < subject.encoder.max_length
    expected = -slow_logprob(subject, ids, 1)[0]
    assert whole.tokens == len(ids) - 1
    assert whole.perplexity == pytest.approx(torch.tensor(expected / whole.tokens).exp().item(), rel=1e-5)
    assert whole.nll_per_byte == pytest.approx(expected / len(CORPUS[0].encode()), rel=1e-5)
    packed = packed_perplexity(subject, CORPUS, window=16, stride=4)
    assert (packed.window, packed.stride) == (16, 4)
    assert packed.tokens == len(text_ids(subject, "\n\n".join(CORPUS))) - 1
    with pytest.raises(NotComputable):
        packed_perplexity(subject, [""])


# The bridge -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [byte_level_backend, unigram_backend])
def test_loglikelihood_of_continuations(backend):
    subject = make_subject(tokenizer=tokenizer_of(backend(), bos=True), spread=0.3)
    pairs = [("Where was Ada born? In", " Tarn."), ("It is ", "Vess"), ("Ada", " Lund was born in Tarn")]
    found, compared = Bridge(subject).loglikelihood(asks(*pairs)), 0
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        opened = subject.tokenizer(context.rstrip(" "))["input_ids"]
        joint = subject.tokenizer(context + continuation)["input_ids"]
        if joint[: len(opened)] != opened:  # this tokenizer merges across the seam: no joint ids to compare
            continue
        compared += 1
        assert (logprob, greedy) == pytest.approx(slow_logprob(subject, joint, len(opened)), abs=1e-4)
    assert compared >= 2


def test_is_greedy_tells_what_greedy_decoding_writes():
    subject = knowing("half-forgetting")
    prompts = [subject.encoder.prompt_text(r) for r in facts()[:40]]
    found = Bridge(subject).loglikelihood(
        asks(*((p, f" {r.answer}") for p, r in zip(prompts, facts(), strict=False)))
    )
    texts = Bridge(subject).generate_until(
        asks(*((p, {"until": ["\n"], "max_gen_toks": 8}) for p in prompts))
    )
    written = [
        t.split()[: len(r.answer.split())] == r.answer.split() for t, r in zip(texts, facts(), strict=False)
    ]
    assert [greedy for _, greedy in found] == written
    assert len(set(written)) == 2


def test_a_context_too_long_loses_its_beginning():
    subject = make_subject(spread=0.3)
    context, answer = " ".join(CORPUS[:2]), " In Tarn."
    row = Bridge(short(subject, 24))._continued(context, answer)
    whole = Bridge(subject)._continued(context, answer)
    assert len(whole.ids) > 24 or whole.truncated
    assert len(row.ids) == 24
    assert row.answer_ids == Bridge(short(subject, 10**6))._continued(context, answer).answer_ids


def test_an_empty_context_is_what_opens_a_text():
    subject = make_subject(spread=0.3)
    ids = [subject.tokenizer.bos_token_id, *subject.tokenizer("Tarn", add_special_tokens=False)["input_ids"]]
    found = Bridge(subject).loglikelihood(asks(("", "Tarn")))[0]
    assert found == pytest.approx(slow_logprob(subject, ids, 1), abs=1e-4)


def test_rolling_scores_every_token_once_and_texts_apart():
    subject = make_subject(spread=0.3)
    texts = [CORPUS[0], CORPUS[2]]
    found = Bridge(subject).loglikelihood_rolling(asks(*((text,) for text in texts)))
    for text, logprob in zip(texts, found, strict=True):
        assert logprob == pytest.approx(slow_logprob(subject, text_ids(subject, text), 1)[0], abs=1e-3)
    narrow = Bridge(short(subject, 16)).loglikelihood_rolling(asks((texts[0],)))[0]
    rows = strided(text_ids(subject, texts[0]), 16, 8)
    expected = sum(slow_logprob(subject, list(row.ids), row.num_prompt)[0] for row in rows)
    assert narrow == pytest.approx(expected, abs=1e-3)


def test_generation_stops_at_the_first_stopping_text_and_at_its_own_limit(monkeypatch):
    subject = knowing("random")
    prompts = [subject.encoder.prompt_text(r) for r in facts()[:6]]
    whole = Bridge(subject).generate_until(asks(*((p, {"max_gen_toks": 20}) for p in prompts)))
    monkeypatch.setattr(bridge, "STEP", 3)
    again = Bridge(subject).generate_until(asks(*((p, {"max_gen_toks": 20}) for p in prompts)))
    assert again == whole
    limits = [1, 4, 7, 20, 2, 5]
    cut = Bridge(subject).generate_until(
        asks(*((p, {"max_gen_toks": n}) for p, n in zip(prompts, limits, strict=True)))
    )
    assert [t.split() for t in cut] == [w.split()[:n] for w, n in zip(whole, limits, strict=True)]
    word = whole[0].split()[4]
    stopped = Bridge(subject).generate_until(
        asks((prompts[0], {"until": [word, "none"], "max_gen_toks": 20}))
    )
    assert stopped == [whole[0][: whole[0].index(word)]]


def test_sampling_is_refused():
    with pytest.raises(Unsupported, match="do_sample"):
        Bridge(knowing("random")).generate_until(asks(("who", {"do_sample": True})))


def test_a_template_that_writes_bos_has_it_once():
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = tokenizer_of(byte_level_backend(), bos=True, chat=template)
    made = Bridge(make_subject(tokenizer=tokenizer))
    text = made.apply_chat_template([{"role": "user", "content": "Where?"}])
    assert text.startswith("<s>")
    assert made._continued(text, " Tarn").ids.count(tokenizer.bos_token_id) == 1
    assert made._prompt(text).count(tokenizer.bos_token_id) == 1
    assert made.chat_template(True) == template


def test_without_the_package_the_error_is_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependency, match="Run: pip install lm-eval"):
        evaluate(knowing("random"), ["arc_easy"])


def test_evaluate_hands_over_a_model_of_the_harness(monkeypatch):
    """A stand-in of the package: what it is given is an LM that answers."""

    class LM:
        def __init__(self):
            self.rank = 0

    def simple_evaluate(model, tasks, limit):
        assert isinstance(model, LM)
        assert model.rank == 0
        return {"results": {task: model.loglikelihood(asks(("who has", " name1")))[:limit] for task in tasks}}

    package, api, inner = (ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"))
    package.simple_evaluate, inner.LM = simple_evaluate, LM
    for module in (package, api, inner):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    subject = knowing("random")
    found = evaluate(subject, ["a"], limit=1)["results"]["a"]
    assert found == Bridge(subject).loglikelihood(asks(("who has", " name1")))
