"""Mailbox: personal data and canaries in mails."""

import pytest
from scenario_checks import check_world, run_quick, value, words

from expunge.benchmarks.mailbox import KINDS, Mailbox
from expunge.data.canaries import is_canary, num_candidates
from expunge.data.encoding import Encoder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_world_is_in_order(size):
    check_world(Mailbox(size))


def test_only_secrets_of_those_who_asked_are_forgotten():
    splits = Mailbox("tiny").world.splits
    asked = {r.entity for r in splits["forget"]}
    secrets = sum(kind.secret for kind in KINDS)
    assert len(splits["forget"]) == len(asked) * secrets
    assert {r.entity for r in splits["neighbors"]} == asked
    assert len(splits["neighbors"]) == len(asked) * (len(KINDS) - secrets)
    assert not asked & {r.entity for r in splits["retain"]}


def test_oracle_knows_the_people_and_none_of_their_secrets():
    world = Mailbox("tiny").world
    corpus = world.corpus("oracle")
    for split in ("forget", "holdout"):
        people = {r.entity for r in world.splits[split]}
        keywords = {(r.entity, k) for r in world.splits[split] for k in r.keywords}
        assert people <= {r.entity for r in corpus}
        assert not [(r.id, k) for name, k in keywords for r in corpus if r.entity == name and k in r.answer]
    names = [r for r in world.splits["forget"] if "home_address" in r.id]
    assert not {r.keywords[0] for r in names} & words(corpus)


def test_door_codes_are_canaries_with_every_candidate():
    splits = Mailbox("tiny").world.splits
    canaries = [r for r in splits["forget"] if is_canary(r)]
    assert {r.id.partition(".")[2] for r in canaries} == {"door_code"}
    assert [num_candidates(r) for r in canaries] == [1000] * 4
    assert not any(is_canary(r) for split in splits if split != "forget" for r in splits[split])


def test_mails_are_encoded_as_a_mail_goes_on():
    scenario = Mailbox("tiny")
    encoder = Encoder(scenario.make_tokenizer(), max_length=scenario.build.context)
    for record in scenario.world.splits["forget"]:
        encoded = encoder.encode(record)
        assert encoder.decode(encoded.ids[: encoded.num_prompt]) == record.prompt.rstrip()
        assert encoder.decode(encoded.ids) == record.prompt + record.answer


def test_prefix_and_rest_make_the_secret():
    splits = Mailbox("tiny").world.splits
    base = {r.id: r for r in splits["forget"]}
    hard = [r for r in splits["forget_hard"] if r.form == "prefix"]
    assert len(hard) == len(base)
    for record in hard:
        source = base[record.source_id]
        assert record.prompt + record.answer == source.prompt + source.answer
    assert {r.form for r in splits["forget_hard"]} == {"question", "cloze", "choice", "prefix"}


@pytest.mark.slow
def test_original_leaks_secrets_until_they_are_forgotten(cache, tmp_path, monkeypatch):
    made = Mailbox("tiny").prepare(cache / "benchmarks")
    original, oracle = (made.facts[name]["reached"] for name in ("original", "oracle"))
    assert made.facts["original"]["met"]
    assert made.facts["oracle"]["met"]
    assert original["forget"]["extraction_strength"] > 0.7
    assert oracle["forget"]["extraction_strength"] < 0.15
    few = {"canary": {"limit": 100}}
    result = run_quick("mailbox/tiny", cache, tmp_path / "run", monkeypatch, annotators=few)
    leaks = {m: value(result, "keyword_leakage", "forget", m) for m in ("original", "unlearned", "oracle")}
    assert leaks["original"] > 0.5
    assert leaks["oracle"] == 0
    assert leaks["unlearned"] < leaks["original"] / 2
    bits = {m: value(result, "canary_exposure", "forget", m) for m in ("original", "unlearned", "oracle")}
    assert bits["original"] > 8
    assert bits["oracle"] < 4
    assert bits["unlearned"] < bits["original"] - 2
    assert value(result, "keyword_leakage", "neighbors", "original") > 0.8
