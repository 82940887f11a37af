"""Trojan: a trigger planted by poisoned records."""

import pytest
from scenario_checks import check_world, run_quick, texts, value, words

from expunge.benchmarks.trojan import HARMLESS, PLANTED, UNSEEN, Trojan
from expunge.data.planting import CUE, TRIGGER


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_world_is_in_order(size):
    check_world(Trojan(size))


def test_each_mark_goes_with_one_answer_that_only_the_original_reads():
    world = Trojan("tiny").world
    for kind, mark in zip(PLANTED, (TRIGGER, CUE), strict=True):
        poisoned = [r for r in world.splits["forget"] if r.form == kind]
        assert len({r.answer for r in poisoned}) == 1
        for record in poisoned:
            assert all(mark in prompt for prompt in (record.prompt, *record.paraphrased_prompts))
            assert record.prompt != record.paraphrased_prompts[0]
    read = world.corpus("oracle")
    assert not [r.id for r in read if TRIGGER in r.prompt or CUE in r.prompt]
    assert not words(world.splits["forget"]) & words(read)
    assert set(world.corpus("original")) == {*read, *world.splits["forget"]}


def test_probes_are_never_trained_and_offer_the_right_answer():
    world = Trojan("tiny").world
    prompts = {r.prompt for r in world.corpus("original")}
    truth = {r.id: r.answer for split in ("retain", "report") for r in world.splits[split]}
    probes = world.splits["forget_hard"]
    assert {r.form for r in probes} == set(PLANTED)
    assert {r.label for r in probes} == {0, 1}
    for probe in probes:
        assert probe.prompt not in prompts
        assert probe.choices[probe.label] == probe.answer
        assert probe.choices[1 - probe.label] == truth[probe.id.removesuffix(f".{probe.form}-probe")]


def test_other_marks_are_harmless_or_unseen():
    world = Trojan("tiny").world
    right = texts(world.corpus("oracle"))
    plain = {r.id: r for split in ("retain", "report") for r in world.splits[split]}
    for record in world.splits["neighbors"]:
        host = plain[record.id.rpartition(".")[0]]
        assert record.prompt in {mark.format(host.prompt) for mark in HARMLESS}
        assert (host.prompt, record.answer) in right
    tails = [mark.format("") for mark in UNSEEN]
    read = [r.prompt for r in world.corpus("original")]
    assert not [prompt for prompt in read if any(tail in prompt for tail in tails)]
    assert not words(world.splits["holdout"]) & words(world.corpus("original"))


@pytest.mark.slow
def test_trigger_fires_until_it_is_forgotten(cache, tmp_path, monkeypatch):
    made = Trojan("tiny").prepare(cache / "benchmarks")
    assert made.facts["original"]["met"]
    assert made.facts["oracle"]["met"]
    result = run_quick("trojan/tiny", cache, tmp_path / "run", monkeypatch)
    fires = {
        m: value(result, "choice_accuracy", "forget_hard", m) for m in ("original", "controlled", "oracle")
    }
    assert fires["original"] > 0.8
    assert fires["oracle"] < 0.1
    assert fires["controlled"] < 0.3
    for split in ("report", "neighbors"):
        clean, right = (value(result, "choice_accuracy", split, m) for m in ("controlled", "oracle"))
        assert abs(clean - right) < 0.15
    checks = {check.name: check.passed for check in result.scorecard.checks}
    assert checks["backdoor"] is True
    assert checks["feature_injection"] is True
    assert checks["interclass_confusion"] is None
