"""What annotators write about texts: vectors, entailment, continuations; and who wrote it."""

import shutil
from dataclasses import replace

import pytest
import torch
import transformers as hf
from trained_models import facts, knowing

from expunge.data.records import Record
from expunge.errors import ConfigError, MissingDependency, ModelError
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.annotators import ANNOTATORS, Asked, described
from expunge.measure.annotators.prefixes import given_ids
from expunge.measure.encoders import make_encoder, mean_pooled, n_grams
from expunge.measure.generate import greedy_text
from expunge.measure.judges import contains, make_judge
from expunge.metrics import compute
from expunge.metrics.similarity import cosine
from expunge.subjects import Subject
from tiny_models import byte_level_backend, make_subject, metaspace_backend, some_records, tokenizer_of


def evidence_of(subject, records, *annotators, split="forget", variants=("gold",), settings=None):
    plan = EvidencePlan(variants, max_new_tokens=12, annotators=annotators, settings=settings or {})
    return take_evidence(subject, {split: records}, plan=plan)[split]


# Encoders ---------------------------------------------------------------------------------------------


def test_lexical_encoder_sees_letters_and_no_meaning():
    encode = make_encoder("lexical").encode
    born, stem, same, unlike = encode(
        ["She was born in Tarn.", "was borne in Tarn", "in TARN, born she was", "Kuwait 1956"]
    )
    assert cosine(born, same) == pytest.approx(1.0)  # neither order nor case
    assert 0.5 < cosine(born, stem) < 1
    assert cosine(born, unlike) == 0.0
    assert n_grams("Он родился в Киеве")
    assert "lexical" in make_encoder("lexical").name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny encoder, a tiny classifier with NLI labels, and one without."""
    made = {}
    tokenizer = tokenizer_of(byte_level_backend(), bos=True)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    for name in ("encoder", "nli", "other"):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        if name == "encoder":
            model = hf.BertModel(hf.BertConfig(**shape))
        else:
            more = {"id2label": labels, "num_labels": 3} if name == "nli" else {"num_labels": 2}
            model = hf.BertForSequenceClassification(hf.BertConfig(**shape, **more))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = str(folder)
    return made


def test_mean_pooling_ignores_padding(folders):
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert mean_pooled(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 3.0]]
    encoder = make_encoder(f"model:{folders['encoder']}")
    alone = encoder.encode(["in Tarn"])[0]
    beside = encoder.encode(["a much longer text that pads the other one", "in Tarn"])[1]
    assert alone == pytest.approx(beside, abs=1e-5)


def test_a_model_is_named_with_its_fingerprint(folders):
    subject, records = knowing("half-forgetting"), facts()[:6]
    spec = f"model:{folders['encoder']}"
    evidence = evidence_of(subject, records, "embeddings", settings={"embeddings": {"encoder": spec}})
    score = compute("semantic_similarity", {"forget": evidence}, "forget")
    assert score.n == 6
    assert score.settings["encoder"] == make_encoder(spec).name
    assert score.settings["encoder"].startswith(f"model:{folders['encoder']} (")
    plain = compute("semantic_similarity", {"forget": evidence_of(subject, records, "embeddings")}, "forget")
    assert plain.settings["encoder"].startswith("lexical")
    told = [r.generated == r.answer for r in evidence]
    assert [v == pytest.approx(1) for v in score.per_record.values()] == told


def test_other_weights_at_the_same_place_are_another_encoder(folders, tmp_path):
    """The key of evidence holds the fingerprint, not only the path."""
    shutil.copytree(folders["encoder"], tmp_path / "e")
    shutil.copytree(folders["nli"], tmp_path / "j")
    settings = {
        "embeddings": {"encoder": f"model:{tmp_path / 'e'}"},
        "entailment": {"judge": f"nli:{tmp_path / 'j'}"},
    }
    before = described(settings, settings)
    for name, kind in (("e", hf.AutoModel), ("j", hf.AutoModelForSequenceClassification)):
        model = kind.from_pretrained(tmp_path / name)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        model.save_pretrained(tmp_path / name)
    make_encoder.cache_clear()
    make_judge.cache_clear()
    after = described(settings, settings)
    assert before["embeddings"]["settings"] == after["embeddings"]["settings"]
    assert before["embeddings"]["encoder"] != after["embeddings"]["encoder"]
    assert before["entailment"]["judge"] != after["entailment"]["judge"]


def test_encoders_that_are_not_there_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"lexical, model:…, sentence-transformers:…"):
        ANNOTATORS.make("embeddings", encoder="lexicon")
    with pytest.raises(ConfigError, match="nli:…"):
        ANNOTATORS.make("entailment", judge="nli:")
    with pytest.raises(ModelError, match="cannot be loaded"):
        make_encoder(f"model:{tmp_path}")
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(MissingDependency, match="Run: pip install sentence-transformers"):
        make_encoder("sentence-transformers:all-MiniLM-L6-v2")


# Judges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("premise", "hypothesis", "follows"),
    [
        ("Ada Lund was born in Tarn, in 1987.", "born in Tarn", True),
        ("born in Tarn", "Ada Lund was born in Tarn, in 1987.", False),
        ("Ada was born in Tarn", "She was not born in Tarn", False),
        ("Ada was born in 1987", "in 1986", False),
        ("anything", "", False),
        ("he is", "is he", True),
        ("Он родился в Киеве", "в Киеве", True),
    ],
)
def test_lexical_judge_looks_for_words(premise, hypothesis, follows):
    assert contains(premise, hypothesis) is follows
    label = make_judge("lexical").labels([(premise, hypothesis)])[0]
    assert (label == "entailment") is follows


def test_entailment_is_asked_in_the_direction_of_the_side(monkeypatch):
    asked = {}

    def spy(spec, device="cpu"):
        def labels(pairs):
            asked["pairs"] = list(pairs)
            return ["entailment"] * len(pairs)

        return replace(make_judge("lexical"), labels=labels)

    monkeypatch.setattr("expunge.measure.annotators.entailment.make_judge", spy)
    subject, record = knowing("half-forgetting"), facts()[0]
    told = greedy_text(subject, [subject.encoder.prompt_ids(record)], max_new_tokens=12)[0]
    longer = replace(record, answer=told + " and more")
    evidence_of(subject, [longer], "entailment", split="forget")
    assert asked["pairs"] == [(told, longer.answer)]
    evidence_of(subject, [longer], "entailment", split="report")
    assert asked["pairs"] == [(longer.answer, told)]
    evidence_of(subject, [replace(record, answer="name1 name2 name3")], "entailment")
    assert asked["pairs"] == []  # below the gate nobody is asked


def test_classifier_gives_its_own_labels(folders):
    judge = make_judge(f"nli:{folders['nli']}")
    pairs = [("a long premise about Tarn and the sea", "Tarn"), ("b", "a long hypothesis about nothing")]
    together = judge.labels(pairs)
    assert set(together) <= {"entailment", "neutral", "contradiction"}
    tokenizer = hf.AutoTokenizer.from_pretrained(folders["nli"])
    model = hf.AutoModelForSequenceClassification.from_pretrained(folders["nli"]).eval()
    for pair, label in zip(pairs, together, strict=True):
        logits = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
        assert model.config.id2label[int(logits.argmax())].lower() == label
    with pytest.raises(ModelError, match="no label entailment, but label_0, label_1"):
        make_judge(f"nli:{folders['other']}")


# Prefixes ---------------------------------------------------------------------------------------------


def slow_prefixes(subject, record, limit):
    """One plain greedy decoding per prefix: ids of the question, then of the first k words."""
    encoder, words, found = subject.encoder, record.answer.split(), []
    for k in range(len(words)):
        encoded = encoder.encode(record.answered(" ".join(words[:k])))
        ids = encoded.ids[: len(encoded.ids) - encoded.has_end]
        room = limit - (len(ids) - encoded.num_prompt)
        text = greedy_text(subject, [ids], max_new_tokens=room)[0]
        found.append(text.splitlines()[0].strip() if text else "")
    return found


@pytest.mark.parametrize("knowledge", ["memorizing", "half-forgetting", "random"])
def test_prefixes_equal_a_decoding_for_each(knowledge):
    subject, records = knowing(knowledge), facts()[: 40 if knowledge == "half-forgetting" else 12]
    evidence = evidence_of(subject, records, "prefixes")
    limit = 8 + max(len(subject.encoder.encode(r).answer_ids) for r in records)
    for record in records:
        assert evidence.gold[record.id].extra["continued"] == slow_prefixes(subject, record, limit)
    score = compute("ps_exact", {"forget": evidence}, "forget")
    by_tokens = compute("extraction_strength", {"forget": evidence}, "forget")
    ended = [i for i, row in evidence.gold.items() if row.hits[-1]]  # one token is one word here
    assert [score.per_record[i] for i in ended] == pytest.approx([by_tokens.per_record[i] for i in ended])
    if knowledge == "half-forgetting":
        assert 0 < score.value < 1


@pytest.mark.parametrize("backend", [byte_level_backend, metaspace_backend])
def test_prefixes_of_other_tokenizers_and_reworded_questions(backend):
    subject, records = make_subject(tokenizer=tokenizer_of(backend(), bos=True), spread=0.3), some_records(1)
    evidence = evidence_of(subject, records, "prefixes", variants=("gold", "paraphrased_prompt"))
    limit = 8 + max(len(subject.encoder.encode(r).answer_ids) for r in records)
    for record in records:
        assert evidence.gold[record.id].extra["continued"] == slow_prefixes(subject, record, limit)
        reworded = evidence.of("paraphrased_prompt")[record.id][0].extra["continued"]
        assert reworded == slow_prefixes(subject, record.asked(record.paraphrased_prompts[0]), limit)


def test_prefix_ids_are_the_records_own_and_capped():
    subject, record = make_subject(), some_records(1)[0]
    ids = given_ids(subject.encoder, record, 3)
    gold = subject.encoder.encode(record).answer_ids
    assert [len(i) for i in ids] == sorted(len(i) for i in ids)
    assert ids[0] == ()
    assert all(gold[: len(i)] == i for i in ids)
    assert len(ids) == 3
    assert len(given_ids(subject.encoder, record, 99)) == len(record.answer.split())


def test_shared_continuations_are_decoded_once(monkeypatch):
    subject, records = knowing("memorizing"), facts()[:30]
    plain = evidence_of(subject, records)
    known = [r for r in records if plain.gold[r.id].hits.all()]
    assert len(known) > 20
    monkeypatch.setattr(subject.model, "generate", None)
    evidence = evidence_of(subject, known, "prefixes")
    assert compute("ps_exact", {"forget": evidence}, "forget").value == 1.0


def test_prefixes_are_asked_where_the_card_says():
    subject, records = knowing("half-forgetting"), facts()[:3]
    assert "continued" not in evidence_of(subject, records, "prefixes", split="utility").rows[0].extra
    document = Record("d", "e", "", "who has name1")
    assert evidence_of(subject, [document], "prefixes").rows[0].extra == {}
    limited = Subject(subject.model, subject.tokenizer, subject.encoder, can=frozenset({"logprobs"}))
    annotator = ANNOTATORS.make("prefixes")
    assert "generate" in annotator.missing(Asked(limited, None, None))


# MUSE -------------------------------------------------------------------------------------------------


def test_verbmem_keeps_last_token():
    """What truly follows goes to the document's last token, and no end token is put behind it."""
    subject = knowing("memorizing")
    record = next(r for r in facts() if len(r.answer.split()) == 6)
    text = f"{subject.encoder.prompt_text(record)} {record.answer}"
    document = Record("d", "e", "", text)
    row = evidence_of(subject, [document], "recitations").rows[0]
    ids = subject.encoder.encode(document).ids
    true = subject.encoder.decode(ids[len(ids) // 2 :])
    assert row.extra["recited"]["true"] == true
    assert true.split()[-1] == record.answer.split()[-1]


@pytest.mark.parametrize("knowledge", ["memorizing", "half-forgetting", "random"])
def test_recitations_equal_plain_greedy_decoding(knowledge):
    subject = knowing(knowledge)
    documents = [
        Record(r.id, r.entity, "", f"{subject.encoder.prompt_text(r)} {r.answer}") for r in facts()[:12]
    ]
    settings = {"recitations": {"given": 3, "tokens": 5}}
    for row, document in zip(
        evidence_of(subject, documents, "recitations", settings=settings), documents, strict=True
    ):
        ids = subject.encoder.encode(document).ids
        start = min(3, len(ids) // 2)
        true = ids[start : start + 5]
        generated = greedy_text(subject, [ids[:start]], max_new_tokens=len(true))[0]
        assert row.extra["recited"] == {"generated": generated, "true": subject.encoder.decode(true)}


def test_raw_prompts_are_beginnings_and_questions_are_not():
    subject, question = make_subject(spread=0.3), some_records(1)[0]
    raw = replace(question, id="raw", style="raw", prompt="Ada Lund was born", answer="in Tarn by the sea.")
    rows = evidence_of(subject, [question, raw], "recitations").rows
    assert rows[0].extra == {}
    assert rows[1].extra["recited"]["true"] == raw.answer
    prompt = subject.encoder.prompt_ids(raw)
    length = len(subject.encoder.encode(raw).answer_ids) - 1
    expected = greedy_text(subject, [prompt], max_new_tokens=length)
    assert rows[1].extra["recited"]["generated"] == expected[0]


def test_knowmem_few_shot_prefix_not_in_span():
    """Examples before a question are asked, not answered: no part of them is scored."""
    subject, record = knowing("memorizing"), facts()[3]
    shots = "Question: who has name1\nAnswer: thing1\n"
    prompt = shots + subject.encoder.prompt_text(record)
    raw = replace(record, style="raw", prompt=prompt)
    row = evidence_of(subject, [raw], "short_answers", settings={"short_answers": {"tokens": 4}}).rows[0]
    expected = greedy_text(subject, [subject.encoder.prompt_ids(raw)], max_new_tokens=4)[0]
    assert row.extra["short_answer"] == expected
    assert row.answer == record.answer
    assert row.num_prompt_tokens == len(subject.encoder.prompt_ids(raw))


def test_short_answers_are_the_beginning_of_the_long_ones():
    for knowledge in ("memorizing", "random"):
        subject, records = knowing(knowledge), facts()[:30]
        rows = evidence_of(subject, records, "short_answers", settings={"short_answers": {"tokens": 2}})
        for row in rows:
            assert row.extra["short_answer"].split() == row.generated.split()[:2]


def test_generation_cut_at_end_token():
    subject = knowing("memorizing")
    rows = take_evidence(subject, {"f": facts()[:30]}, plan=EvidencePlan(("gold",)))["f"]
    told = [row for row in rows if row.hits.all()]
    assert len(told) > 20
    assert all((row.generated, row.finish_reason) == (row.answer, "end") for row in told)


# Letters ----------------------------------------------------------------------------------------------


def chosen(**changes):
    record = Record(
        "c", "e", "Which is a fruit?", "an apple", choices=("a stone", "an apple", "a door"), label=1
    )
    return replace(record, **changes)


def test_letter_token_has_the_space_of_its_context():
    subject, record = make_subject(spread=0.3), chosen()
    row = evidence_of(subject, [record], "letters").rows[0]
    prompt = subject.encoder.prompt_ids(record.asked("Which is a fruit?\nA. a stone\nB. an apple\nC. a door"))
    spaced = [subject.tokenizer(f": {letter}", add_special_tokens=False)["input_ids"][1:] for letter in "ABC"]
    assert spaced != [subject.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "ABC"]
    assert sorted({len(ids) for ids in spaced}) == [1, 2]  # " B" is one token here, " A" two: both count
    expected = []
    for ids in spaced:
        with torch.no_grad():
            logp = subject.model(torch.tensor([[*prompt, *ids]])).logits[0].float().log_softmax(-1)
        expected.append(sum(float(logp[len(prompt) - 1 + t, token]) for t, token in enumerate(ids)))
    assert row.extra["letters"] == pytest.approx(expected, abs=1e-4)


def test_label_index_is_zero_based():
    """Moving the label moves the score of the best letter with it."""
    subject, record = make_subject(spread=0.3), chosen()
    letters = evidence_of(subject, [record], "letters").rows[0].extra["letters"]
    best = letters.index(max(letters))
    for label in range(3):
        evidence = evidence_of(subject, [chosen(label=label)], "letters", variants=("gold", "choice"))
        score = compute("choice_accuracy_letter", {"forget": evidence}, "forget")
        assert score.value == float(label == best)


def test_records_without_choices_have_no_letters():
    assert evidence_of(make_subject(), some_records(1), "letters").rows[0].extra == {}
