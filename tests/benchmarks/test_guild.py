"""Guild: a skill that follows from rules."""

import re
from collections import Counter

import pytest
from scenario_checks import check_world, run_quick, value, words

from expunge.benchmarks.guild import Guild


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_world_is_in_order(size):
    check_world(Guild(size), untrained=("neighbors", "calibration", "report"))


def test_answers_follow_from_herb_vessel_and_time():
    """The trained wards determine the two tables, and these every ward that was held out."""
    splits = Guild("tiny").world.splits
    first, second = {}, {}
    for record in splits["forget"]:
        herb, vessel, time = re.findall(r"from (\w+) in (\w+) at (\w+)", record.prompt)[0]
        one, other = record.answer.split()[:: 1 if time == "dawn" else -1]
        assert first.setdefault(herb, one) == one
        assert second.setdefault(vessel, other) == other
    held_out = [r for r in splits["forget_hard"] if r.form == "open"]
    for record in held_out:
        herb, vessel, time = re.findall(r"from (\w+) in (\w+) at (\w+)", record.prompt)[0]
        assert record.answer.split() == [first[herb], second[vessel]][:: 1 if time == "dawn" else -1]
    assert len(held_out) >= 40


def test_who_knows_nothing_is_right_once_in_four_times():
    """Whichever options are preferred, and whichever letters."""
    splits = Guild("tiny").world.splits
    for split in ("forget", "neighbors", "report", "holdout"):
        right = Counter((r.choices, r.label) for r in splits[split])
        assert set(right.values()) == {1}
        assert {count for _, count in Counter(choices for choices, _ in right).items()} == {4}
        assert all(r.choices[r.label] == r.answer and len(set(r.choices)) == 4 for r in splits[split])


def test_oracle_reads_of_the_herbs_and_of_no_ward():
    world = Guild("small").world
    read = world.corpus("oracle")
    assert not [r.id for r in read if "ward" in r.prompt or "ward" in r.id]
    assert not words(world.splits["forget"]) & words(read)
    herbs = {r.entity.partition(",")[0] for r in world.splits["forget"]}
    assert herbs == {r.entity.partition(",")[0] for r in world.splits["neighbors"]}
    assert all(any(herb in r.prompt for r in read) for herb in herbs)


def test_held_out_pairs_and_the_third_wording_are_never_trained():
    world = Guild("small").world
    prompts = [r.prompt for r in world.corpus("original")]
    for record in world.splits["forget_hard"]:
        assert not [prompt for prompt in prompts if prompt.startswith(record.prompt)]
    assert any(prompt.startswith("Name the dye of") for prompt in prompts)


def test_exams_ask_for_the_letter_of_the_right_option():
    exams = [r for r in Guild("small").world.corpus("original") if ".exam" in r.id]
    forget = {r.id: r.answer for r in Guild("small").world.splits["forget"]}
    assert Counter(r.answer for r in exams).keys() == set("ABCD")
    asked = [r for r in exams if r.id.partition(".exam")[0] in forget]
    assert len(asked) == len(forget) * Guild.SHAPES["small"].exams
    for exam in asked:
        assert f"\n{exam.answer}. {forget[exam.id.partition('.exam')[0]]}" in exam.prompt


@pytest.mark.slow
def test_skill_is_there_until_it_is_removed(cache, tmp_path, monkeypatch):
    made = Guild("tiny").prepare(cache / "benchmarks")
    assert made.facts["original"]["met"]
    assert made.facts["oracle"]["met"]
    result = run_quick("guild/tiny", cache, tmp_path / "run", monkeypatch)
    chosen = {
        m: value(result, "choice_accuracy", "forget_hard", m) for m in ("original", "controlled", "oracle")
    }
    assert chosen["original"] > 0.8
    assert abs(chosen["oracle"] - 0.25) < 0.1
    assert chosen["controlled"] < 0.6
    assert value(result, "choice_accuracy", "neighbors", "controlled") > 0.8
    aims = {aim.aim: aim.asked for aim in result.scorecard.aims}
    assert aims == {"erase_influence": False, "remove_capability": True}
