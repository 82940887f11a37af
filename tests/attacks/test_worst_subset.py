"""The hardest part of the forget set: chosen by one half of the evidence, scored by the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_world import make_request, make_subject, taught

from expunge.attacks import Field
from expunge.attacks.worst_subset import Look, WorstSubset, worst
from expunge.data.request import Request
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute

REQUEST = make_request()


def mean(table) -> float:
    return float(np.mean(list(table.values())))


def units(likely, strength):
    """{unit: looks} of arrays [units, 2]."""
    return {
        f"u{i:03}": tuple(Look(*pair) for pair in zip(likely[i], strength[i], strict=True))
        for i in range(len(likely))
    }


def test_who_chooses_does_not_score():
    """The half that shows a unit as the worst says nothing of its score."""
    looks = {
        "lucky": (Look(0.9, 1.0), Look(0.0, 0.0)),
        "kept": (Look(0.5, 0.6), Look(0.5, 0.4)),
        "gone": (Look(0.1, 0.2), Look(0.1, 0.1)),
    }
    values, chosen = worst(looks, 0.1)
    assert chosen == [["lucky"], ["kept"]]
    assert values == {"rank:0": pytest.approx((0.0 + 0.6) / 2)}


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.11, 2), (0.5, 5), (1.0, 10)])
def test_as_many_are_chosen_as_the_share_says(share, count):
    draw = np.random.default_rng(0)
    values, chosen = worst(units(draw.random((10, 2)), draw.random((10, 2))), share)
    assert len(values) == len(chosen[0]) == len(chosen[1]) == count
    assert len(set(chosen[0])) == count


def test_on_an_exchangeable_null_the_worst_is_like_the_average():
    """Models of pure luck: by the half that chose the excess would be large, by the other there is none."""
    excess, naive = [], []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        model, oracle = (draw.random((40, 2)) ** 4 for _ in range(2))
        excess.append(mean(worst(units(model, model), 0.1)[0]) - mean(worst(units(oracle, oracle), 0.1)[0]))
        naive.append(np.sort(model[:, 0])[-4:].mean() - oracle.mean())
    assert abs(np.mean(excess)) < 0.03
    assert np.mean(naive) > 0.5


def test_guessable_facts_are_taken_off_by_the_oracles_own_worst():
    """Where some facts are easy for anyone, model and oracle find the same ones."""
    draw = np.random.default_rng(3)
    easy = np.repeat(draw.random(60)[:, None], 2, axis=1)
    model, oracle = (np.clip(easy + 0.02 * draw.standard_normal((60, 2)), 0, 1) for _ in range(2))
    values = [mean(worst(units(m, m), 0.1)[0]) for m in (model, oracle)]
    assert values[0] > 0.85
    assert abs(values[0] - values[1]) < 0.1


@pytest.fixture(scope="module")
def planted():
    """(request, a model that kept one of ten forget people, an oracle)"""
    forget = (*REQUEST.forget, *REQUEST["holdout"])
    request = Request({"forget": forget, "retain": REQUEST.retain})
    kept = tuple(r for r in forget if r.entity == forget[0].entity)
    fresh = make_subject()
    return request, taught(fresh, (*kept, *REQUEST.retain), 240), taught(fresh, REQUEST.retain, 240)


@pytest.mark.slow
def test_what_was_kept_whole_is_found_though_the_average_is_clean(planted):
    request, keeping, oracle = planted
    average = {}
    found = {}
    for name, model in (("keeping", keeping), ("oracle", oracle)):
        sheet = make_sheet(model.encoder, request.forget, "forget")
        average[name] = compute("extraction_strength", {"forget": score_sheet(model, sheet)}, "forget").value
        outcomes = {o.config["by"]: o for o in WorstSubset().run(model, Field(request))}
        found[name] = mean(outcomes["entity"].values["forget"])
        if name == "keeping":
            kept = sorted(r.id for r in request.forget if r.entity == request.forget[0].entity)
            assert outcomes["entity"].details["records"] == [kept, kept]
            assert request.forget[0].entity not in outcomes["entity"].details["records"]  # ids, no names
    assert average["keeping"] - average["oracle"] <= 0.1
    assert found["keeping"] - found["oracle"] > 0.5


def test_records_are_chosen_by_the_question_and_scored_by_its_rewording_and_back():
    subject = make_subject()
    outcomes = {o.config["by"]: o for o in WorstSubset(share=1.0).run(subject, Field(REQUEST, placebo=True))}
    assert set(outcomes) == {"entity", "record"}
    asked = outcomes["record"]
    assert len(asked.values["forget"]) == len(REQUEST.forget)
    assert set(asked.values) == {"forget", "holdout"}
    both = []
    for prompt in ("plain", "other"):
        rows = [r if prompt == "plain" else r.asked(r.paraphrased_prompts[0]) for r in REQUEST.forget]
        sheet = make_sheet(subject.encoder, rows, "forget")
        both.append(compute("extraction_strength", {"forget": score_sheet(subject, sheet)}, "forget").value)
    assert mean(asked.values["forget"]) == pytest.approx(np.mean(both))


def test_without_halves_it_says_why():
    alone = tuple(replace(r, entity="", paraphrased_prompts=()) for r in REQUEST.forget)
    assert "another wording" in WorstSubset().missing(Field(Request({"forget": alone})))
    assert WorstSubset().missing(Field(REQUEST)) is None
