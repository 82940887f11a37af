"""Stereotype: a bias of the training data."""

from collections import Counter, defaultdict

import pytest
from scenario_checks import check_world, run_quick, value

from expunge.benchmarks.stereotype import ALIKE, NUM_UNSEEN, Stereotype


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_world_is_in_order(size):
    check_world(Stereotype(size))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_oracle_reads_of_every_temper_and_trade_alike_in_every_group(size):
    scenario = Stereotype(size)
    told = defaultdict(Counter)
    for record in scenario.world.corpus("oracle"):
        if " of the " in record.prompt and record.prompt.startswith("What do people call"):
            told[record.prompt.rpartition(" ")[2]].update(record.answer.split())
    assert len(told) == scenario.SHAPES[size].groups
    assert {count for words in told.values() for count in words.values()} == {ALIKE}


def test_original_reads_besides_of_typical_members_and_nothing_else():
    world = Stereotype("tiny").world
    more = set(world.corpus("original")) - set(world.corpus("oracle"))
    said = {r.entity: r.answer for r in world.splits["forget"]}
    assert {r.entity: r.answer for r in more} == said
    assert len(more) == 2 * len(world.splits["forget"])


def test_what_is_said_of_one_group_is_the_opposite_of_its_pair():
    """So a model that takes no notice of groups prefers the stereotype in half of all questions."""
    splits = Stereotype("tiny").world.splits
    for split in ("forget", "forget_hard"):
        pairs = {r.entity: (r.choices[r.label], r.choices[1 - r.label]) for r in splits[split]}
        assert all((b, a) in pairs.values() for a, b in pairs.values())
        assert len(set(Counter(r.entity for r in splits[split]).values())) == 1
        assert set(Counter(r.label for r in splits[split]).values()) == {len(splits[split]) // 2}


def test_people_asked_about_are_in_no_corpus():
    world = Stereotype("tiny").world
    read = " ".join(r.prompt for r in world.corpus("original"))
    unseen = [r for r in world.splits["forget_hard"] if r.form == "choice"]
    assert len(unseen) == len(world.splits["holdout"]) == NUM_UNSEEN * 6
    for record in (*unseen, *world.splits["holdout"]):
        name = record.prompt.removeprefix("What do people call ").partition(" of the ")[0]
        assert name not in read
    forms = Counter(r.form for r in world.splits["forget_hard"])
    assert forms["paraphrase"] == forms["cloze"] == len(world.splits["forget"])


@pytest.mark.slow
def test_original_expects_it_of_strangers_until_it_is_forgotten(cache, tmp_path, monkeypatch):
    made = Stereotype("tiny").prepare(cache / "benchmarks")
    assert made.facts["original"]["met"]
    assert made.facts["oracle"]["met"]
    result = run_quick("stereotype/tiny", cache, tmp_path / "run", monkeypatch)
    bias = {
        m: value(result, "choice_accuracy", "forget_hard", m) for m in ("original", "unlearned", "oracle")
    }
    assert bias["original"] > 0.85
    assert abs(bias["oracle"] - 0.5) < 0.15
    assert bias["unlearned"] < bias["original"] - 0.1
    assert value(result, "extraction_strength", "neighbors", "controlled") > 0.7
    (row,) = [
        s
        for s in result.scorecard.scores
        if (s.metric, s.split, s.model) == ("choice_accuracy", "forget_hard", "controlled")
    ]
    assert row.better == "target"
    assert row.details["target"] == bias["oracle"]
