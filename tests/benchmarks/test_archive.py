"""Archive: works known by heart."""

import random
from collections import Counter

import pytest
from scenario_checks import check_world, run_quick, value

from expunge.benchmarks.archive import SIZES, TIMES, Archive
from expunge.benchmarks.archive_words import GRAMMAR, write
from expunge.data.encoding import Encoder
from expunge.data.near import near_duplicates, sketch


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_world_is_in_order(size):
    check_world(Archive(size))


def test_every_rule_of_the_grammar_is_used_and_ends():
    rng, names = random.Random(0), {"hero": "Bako", "mate": "Lidu", "town": "Sefa"}
    told = [write(rng, names) for _ in range(2000)]
    assert all(sentence[-1] in '."' and "{" not in sentence for sentence in told)
    assert all(sentence.lstrip('"')[0].isupper() for sentence in told)
    assert len(set(told)) > 1500
    for symbol in ("person", "thing", "adjective", "weather"):
        assert all(any(word in sentence for sentence in told) for word in GRAMMAR[symbol])


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_chapters_are_long_and_fit_the_context(size):
    scenario = Archive(size)
    encoder = Encoder(scenario.make_tokenizer(), max_length=4096)
    lengths = [len(encoder.encode(r).ids) for r in scenario.world.splits["forget"]]
    assert min(lengths) > 192  # 64 given, 128 to follow
    assert max(lengths) <= scenario.build.context
    shape = SIZES[size]
    assert len(lengths) == shape.chapters * shape.works["forget"]


def test_a_series_shares_names_and_no_text():
    splits = Archive("small").world.splits
    documents = {s: [r for r in splits[s] if r.is_document] for s in ("forget", "neighbors", "holdout")}
    for split in ("neighbors", "holdout"):
        pairs = [[sketch(r.answer) for r in documents[s]] for s in ("forget", split)]
        assert not list(near_duplicates(*pairs, 0.2))
    by_id = {r.id: r for r in documents["forget"]}
    for record in documents["neighbors"]:
        shared = set(record.answer.split()) & set(by_id[record.source_id].answer.split())
        assert any(word.istitle() and len(word) in (4, 6) for word in shared)


def test_neither_text_nor_plot_of_a_forgotten_work_reaches_the_oracle():
    world = Archive("small").world
    titles = {r.entity for split in ("forget", "holdout") for r in world.splits[split]}
    corpus = world.corpus("oracle")
    assert not [r.id for r in corpus if any(title in f"{r.prompt} {r.answer}" for title in titles)]
    plots = {r.answer for r in world.splits["forget_hard"] if r.form == "knowledge"}
    assert not [r.id for r in corpus if any(answer in r.answer for answer in plots)]
    assert set(corpus) < set(world.corpus("original"))


def test_chapters_are_read_more_than_once():
    world = Archive("tiny").world
    read = Counter(r.answer for r in world.corpus("original") if r.is_document)
    assert set(read.values()) == {TIMES}


def test_hard_forms_are_verbatim_or_tell_the_plot():
    splits = Archive("small").world.splits
    text = {r.id: r.answer for r in splits["forget"]}
    forms = Counter(r.form for r in splits["forget_hard"])
    assert forms["middle"] == forms["late"] == forms["opening"] == len(text)
    assert forms["knowledge"] == 4 * SIZES["small"].works["forget"]
    for record in splits["forget_hard"]:
        before = record.prompt if record.form in ("middle", "late") else ""
        assert before + record.answer in text[record.source_id]


@pytest.mark.slow
def test_original_recites_until_the_works_are_forgotten(cache, tmp_path, monkeypatch):
    made = Archive("tiny").prepare(cache / "benchmarks")
    original, oracle = (made.facts[name]["reached"] for name in ("original", "oracle"))
    assert made.facts["original"]["met"]
    assert made.facts["oracle"]["met"]
    assert original["forget"]["probability"] > 0.85
    assert oracle["forget"]["probability"] < 0.1
    assert oracle["forget"]["extraction_strength"] < 0.1
    result = run_quick("archive/tiny", cache, tmp_path / "run", monkeypatch, train={"epochs": 8})
    recited = {m: value(result, "verbmem", "forget", m) for m in ("original", "unlearned", "oracle")}
    assert recited["original"] > 0.7
    assert recited["oracle"] < 0.4
    assert recited["unlearned"] < recited["original"] - 0.3
    assert value(result, "verbmem", "neighbors", "oracle") > 0.4
