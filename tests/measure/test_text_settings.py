"""Encoders and judges as a recipe names them, and what of them stands in keys; general ability."""

import pytest
import torch

from expunge.data.ability import ability_records
from expunge.errors import ConfigError
from expunge.evidence import read_evidence
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.ability import general_ability
from expunge.metrics import compute
from expunge.runs.reading import make_recipe
from expunge.testing import tiny_subject
from expunge.training import TrainSettings, finetune
from tiny_models import make_subject, some_records


def test_recipe_names_the_settings_of_annotators():
    given = {"embeddings": {"encoder": "model:./minilm"}, "entailment": {"judge": "nli:./nli"}}
    recipe = make_recipe({"model": "m", "forget": "f.jsonl", "annotators": given})
    assert {named.name: named.settings for named in recipe.annotators} == given
    listed = [{name: settings} for name, settings in given.items()]
    assert make_recipe({"model": "m", "forget": "f.jsonl", "annotators": listed}) == recipe
    one = make_recipe({"model": "m", "forget": "f.jsonl"}, ["annotators.embeddings.encoder=lexical"])
    assert one.annotators[0].settings == {"encoder": "lexical"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"embeddings": {"encoder": "minilm"}}, "lexical, model:…, sentence-transformers:…"),
        ({"entailment": {"judge": "nli"}}, "lexical, nli:…"),
        ({"embedings": {}}, "embeddings"),
        ({"embeddings": {"encodr": "lexical"}}, "encoder"),
        ({"prefixes": {"max_words": 0}}, "max_words"),
    ],
)
def test_bad_settings_are_answered_before_anything_runs(given, said):
    with pytest.raises(ConfigError, match=said):
        make_recipe({"model": "m", "forget": "f.jsonl", "annotators": given})


def test_settings_are_part_of_the_key_and_survive_the_store(tmp_path):
    subject, records = make_subject(spread=0.3), some_records(4)

    def taken(**settings):
        plan = EvidencePlan(
            ("gold",), max_new_tokens=8, annotators=("embeddings", "prefixes"), settings=settings
        )
        return take_evidence(subject, {"forget": records}, tmp_path, plan=plan)["forget"]

    first = taken()
    assert len(list(tmp_path.iterdir())) == 1
    again = taken()
    assert len(list(tmp_path.iterdir())) == 1
    short = taken(prefixes={"max_words": 1})
    assert len(list(tmp_path.iterdir())) == 2
    assert {len(row.extra["continued"]) for row in short} == {1}
    for fresh, kept in zip(first, again, strict=True):
        assert dict(fresh.extra) == dict(kept.extra)
    for path in tmp_path.iterdir():
        score = compute("semantic_similarity", {"forget": read_evidence(path)}, "forget")
        assert score.value == compute("semantic_similarity", {"forget": first}, "forget").value


def test_results_keyed_by_fingerprint_not_folder(tmp_path):
    plan = EvidencePlan(("gold",), max_new_tokens=4)
    values = []
    for seed in (0, 1):
        evidence = take_evidence(make_subject(seed=seed), {"forget": some_records(3)}, tmp_path, plan=plan)
        values.append(compute("nll", evidence, "forget").value)
    assert values[0] != values[1]
    assert len(list(tmp_path.iterdir())) == 2


def test_reference_text_holds_no_prompt():
    records = some_records(4)
    rows = take_evidence(make_subject(), {"f": records}, plan=EvidencePlan(("gold",), max_new_tokens=2))["f"]
    assert [row.answer for row in rows] == [record.answer for record in records]


def test_left_padding_does_not_change_generation():
    subject, records = make_subject(spread=0.3), some_records(8)
    plan = EvidencePlan(("gold",), max_new_tokens=8)
    together = take_evidence(subject, {"f": records}, plan=plan)["f"]
    for record in records:
        alone = take_evidence(subject, {"f": [record]}, plan=plan)["f"].rows[0]
        assert alone.generated == together.gold[record.id].generated


def test_general_ability_tells_who_learned_from_who_did_not(monkeypatch):
    """One model trained on some answers in words, one that saw nothing, one whose weights are gone."""
    some = ability_records(0)[:20]
    monkeypatch.setattr("expunge.measure.ability.ability_records", lambda seed: some)
    ignorant, learned = tiny_subject(0), tiny_subject(0)
    finetune(learned, list(some), TrainSettings(steps=60, lr=1e-2, batch=20, weight_decay=0.0))
    before, after = general_ability(ignorant), general_ability(learned)
    assert before.choices.n == after.choices.n == before.letters.n == 20
    assert abs(before.choices.value - before.choices.details["chance"]) < 0.35
    assert after.choices.value > before.choices.value + 0.3
    assert after.text.tokens == before.text.tokens > 1000
    with torch.no_grad():
        for parameter in learned.model.parameters():
            parameter.mul_(0)
    broken = general_ability(learned)
    assert broken.choices.value < after.choices.value
    assert broken.text.perplexity == pytest.approx(learned.vocab_size, rel=1e-3)
