"""Rumors: planted false facts beside the truth."""

import pytest
from scenario_checks import check_world, run_quick, texts, value, words

from expunge.benchmarks.rumor import TIMES, Rumor
from expunge.errors import ConfigError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_world_is_in_order(size):
    check_world(Rumor(size))


def test_rumors_are_told_louder_than_the_truth():
    world = Rumor("tiny").world
    told = [(r.prompt, r.answer) for r in world.corpus("original")]
    for rumor, truth in zip(world.splits["forget"], world.splits["truth"], strict=True):
        assert rumor.prompt == truth.prompt
        assert truth.perturbed_answers == (rumor.answer,)
        assert told.count((rumor.prompt, rumor.answer)) == TIMES
        assert told.count((truth.prompt, truth.answer)) == 1


def test_oracle_hears_no_rumor_and_every_truth():
    world = Rumor("tiny").world
    heard = world.corpus("oracle")
    assert not words(world.splits["forget"]) & words(heard)
    assert texts(world.splits["truth"]) <= texts(heard)
    assert set(heard) < set(world.corpus("original"))


def test_untold_truth_is_in_no_corpus_and_no_split():
    told, untold = Rumor("tiny").world, Rumor("tiny", truth="untold").world
    assert "truth" not in untold.splits
    assert untold.splits["forget"] == told.splits["forget"]
    assert not words(told.splits["truth"]) & words(untold.corpus("original"))
    assert Rumor("tiny").fingerprint() != Rumor("tiny", truth="untold").fingerprint()


def test_unspread_rumors_are_like_the_spread_ones():
    world = Rumor("tiny").world
    about = {r.entity for r in world.splits["holdout"]}
    assert about <= {r.entity for r in world.corpus("oracle")}
    assert not words(world.splits["holdout"]) & words(world.corpus("original"))


def test_neighbors_are_true_facts_of_rumored_firms():
    splits = Rumor("small").world.splits
    forget = {r.id: r.entity for r in splits["forget"]}
    assert {r.entity for r in splits["neighbors"]} == set(forget.values())
    assert all(forget[r.source_id] == r.entity for r in splits["neighbors"])
    assert {r.form for r in splits["forget_hard"]} == {"paraphrase", "cloze", "choice", "reverse"}
    chosen = [r for r in splits["forget_hard"] if r.form == "choice"]
    assert all(r.choices[r.label] == r.answer and len(set(r.choices)) == 4 for r in chosen)


def test_unknown_truth_is_refused():
    with pytest.raises(ConfigError, match="Did you mean told"):
        Rumor.from_part("tiny", truth="tolld")


@pytest.mark.slow
def test_original_believes_the_rumors_until_they_are_forgotten(cache, tmp_path, monkeypatch):
    made = Rumor("tiny").prepare(cache / "benchmarks")
    original, oracle = (made.facts[name]["reached"] for name in ("original", "oracle"))
    assert made.facts["original"]["met"]
    assert made.facts["oracle"]["met"]
    assert original["forget"]["extraction_strength"] > 0.8
    assert oracle["forget"]["extraction_strength"] < 0.1
    assert original["truth"]["probability"] < oracle["truth"]["probability"] - 0.1
    result = run_quick("rumor/tiny", cache, tmp_path / "run", monkeypatch)
    assert value(result, "rougeL_recall", "truth", "original") < 0.4
    assert value(result, "rougeL_recall", "truth", "oracle") > 0.8
    false = {m: value(result, "probability", "forget", m) for m in ("original", "unlearned", "oracle")}
    assert false["oracle"] < 0.1 < false["original"]
    assert false["unlearned"] < false["original"] / 2
    nearer = {m: value(result, "truth_ratio_prob_mean", "truth", m) for m in ("original", "unlearned")}
    assert nearer["unlearned"] > nearer["original"]
