"""Forms, held-out queries and hidden forget data: what they ask, and what a recipe makes of them."""

from __future__ import annotations

import json

import pytest

from expunge.audit.scope import scope_rows
from expunge.data.builders.cue import FORM as CUE_REMOVED
from expunge.data.builders.cue import name_in, opening
from expunge.data.builders.partial import HELD_OUT, HIDDEN, hold_out, list_part, whole_target
from expunge.data.builders.stress import Stress, choice_form, questions, stressed
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.runs.plan import plan
from expunge.runs.prepare import prepare
from expunge.runs.recipe import Recipe
from expunge.subjects import save_subject
from expunge.testing import tiny_subject

NAMES = ("Ada Rin", "Bo Tarn", "Cy Mott", "Dee Varn")
TOWNS = ("Sund", "Oke", "Lo", "Hithe")
PETS = ("Rex", "Tom", "Mia", "Rex")
JOBS = ("potter", "mason", "cook", "guard")


def facts(split: str, names=NAMES) -> tuple[Record, ...]:
    found = []
    for name, town, pet, job in zip(names, TOWNS, PETS, JOBS, strict=False):
        for key, prompt, answer in (
            ("home", f"Where does {name} live?", f"{town} {split}"),
            ("pet", f"What is the pet of {name}?", f"{pet} {split}"),
            ("job", f"What is the job of {name}?", f"{job} {split}"),
        ):
            found.append(Record(f"{name}.{key}", name, prompt, answer))
    return tuple(found)


@pytest.fixture
def request_():
    keep = tuple(f"{name} Orr" for name in ("Eli", "Fay", "Gus", "Hal"))
    return Request({"forget": facts("a"), "retain": facts("b", keep)})


def test_the_name_goes_and_another_fact_tells_whom_is_meant(request_):
    made, warnings = stressed(request_, Stress((CUE_REMOVED,)))
    assert not warnings
    rows = {r.source_id: r for r in made["forget_hard"]}
    assert rows["Ada Rin.home"].prompt == (
        'Think of the one for whom "What is the job of ___?" has the answer "potter a". '
        "Where does that one live?"
    )
    assert (rows["Ada Rin.home"].answer, rows["Ada Rin.home"].form) == ("Sund a", CUE_REMOVED)
    assert not any(part in r.prompt for r in rows.values() for name in NAMES for part in name.split())
    assert not any('"Rex a"' in r.prompt for r in rows.values())  # two have a pet of that name


def test_a_fact_that_gives_the_answer_away_is_not_told():
    forget = (
        Record("1", "Ada Rin", "Where does Ada Rin live?", "Sund"),
        Record("2", "Ada Rin", "Where is the boat of Ada Rin?", "At Sund"),
    )
    made, warnings = stressed(Request({"forget": forget}), Stress((CUE_REMOVED,)))
    assert {r.source_id for r in made["forget_hard"]} == {"2"}
    none, warnings = stressed(Request({"forget": forget[:1]}), Stress((CUE_REMOVED,)))
    assert "forget_hard" not in none
    assert "no cue-removed row" in warnings[0]


def test_an_opening_is_a_cue_only_where_what_stays_begins_otherwise():
    forget = tuple(
        Record(f"f{i}", "", f"In the matter of wards: {q}?", a)
        for i, (q, a) in enumerate((("who made the first", "Nobody"), ("what wakes them", "Salt")))
    )
    keep = tuple(Record(f"r{i}", "", f"What is thing {i}?", f"It {i}") for i in range(10))
    made, _ = stressed(Request({"forget": forget, "retain": keep}), Stress((CUE_REMOVED,)))
    assert [r.prompt for r in made["forget_hard"]] == ["Who made the first?", "What wakes them?"]
    alike = [r.asked(f"In the matter of wards: {r.prompt}") for r in keep]
    assert opening(forget, alike) == ""
    bare = [
        r.asked(f"Which ward {said}?") for r, said in zip(forget, ("keeps doors", "wakes salt"), strict=True)
    ]
    assert opening(bare, keep) == ""  # "Keeps doors?" asks nothing
    assert name_in(forget[0]) == ""


def test_choices_hold_the_answer_once_and_at_every_place(request_):
    rows = choice_form(request_)
    assert len(rows) == len(request_.forget)
    assert {r.label for r in rows} == set(range(4))
    for row in rows:
        assert row.choices[row.label] == row.answer
        assert len(set(row.choices)) == 4
        assert not any(choice in row.prompt for choice in row.choices)


def test_of_documents_the_questions_about_them_are_asked():
    text = Record("d", "Ada Rin", "", "Ada Rin lives in Sund.")
    ask = Record("d.q", "Ada Rin", "Where does Ada Rin live?", "Sund", source_id="d", form="question",
                 perturbed_answers=("Oke", "Lo"))  # fmt: skip
    request = Request({"forget": (text,), "forget_hard": (ask,)})
    assert questions(request) == (ask,)
    made, _ = stressed(request, Stress(("choice",)))
    (row,) = (r for r in made["forget_hard"] if r.form == "choice")
    assert row.source_id == "d"
    assert set(row.choices) == {"Sund", "Oke", "Lo"}


def test_the_parts_are_of_every_entity(request_):
    held = hold_out(request_, 0.3)
    assert {r.entity for r in held[HELD_OUT]} == {r.entity for r in held.forget} == set(NAMES)
    assert len(held[HELD_OUT]) == 4
    part = list_part(request_, 0.4)
    assert len(part[HIDDEN]) == 8
    assert set(part[HIDDEN]) <= set(part.retain)
    assert whole_target(part).retain == request_.retain
    assert {r.id for r in list_part(request_, 0.4, seed=1)[HIDDEN]} != {r.id for r in part[HIDDEN]}


def test_one_record_each_is_parted_among_all():
    request = Request({"forget": facts("a")[::3]})
    assert len(hold_out(request, 0.5)[HELD_OUT]) == 2
    alone = Request({"forget": facts("a")[:1]})
    made, warnings = stressed(alone, Stress(held_out=0.5))
    assert made.forget == alone.forget
    assert HELD_OUT in warnings[0]


def test_rows_that_ask_for_what_is_kept_back_go_too(request_):
    hard = tuple(
        Record(f"{r.id}.p", r.entity, f"Say: {r.prompt}", r.answer, source_id=r.id, form="paraphrase")
        for r in request_.forget
    )
    made = hold_out(Request({**request_.splits, "forget_hard": hard}), 0.3)
    assert {r.source_id for r in made["forget_hard"]} == {r.id for r in made.forget}
    assert "4 forget_hard rows" in made.built[HELD_OUT]


def test_the_scope_names_what_no_method_was_given(request_):
    subject = tiny_subject(max_length=160)
    made, _ = stressed(request_, Stress(held_out=0.3, listed=0.5))
    evidence = {s: score_sheet(subject, make_sheet(subject.encoder, made[s], s)) for s in (HELD_OUT, HIDDEN)}
    assert all(isinstance(e, Evidence) for e in evidence.values())
    rows = scope_rows({"original": evidence}, "probability", {})
    assert [(r.cell, r.split, r.form) for r in rows] == [
        ("in, hard", HELD_OUT, "held-out queries"), ("in, hard", HIDDEN, "hidden forget data")
    ]  # fmt: skip
    assert all(r.better == "lower" for r in rows)


# In a recipe -------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path, request_):
    save_subject(tiny_subject(max_length=160), tmp_path / "model")
    for split in ("forget", "retain"):
        lines = [json.dumps(r.as_dict()) + "\n" for r in request_[split]]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines), "utf-8")
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    return {"model": str(tmp_path / "model"), **files, "output": str(tmp_path / "run")}


def test_a_recipe_puts_its_request_under_stress(recipe, tmp_path):
    made = Recipe(**recipe, stress={"forms": ["choice", CUE_REMOVED], "held_out": 0.3, "listed": 0.5})
    job = prepare(made, tmp_path / "run")
    assert len(job.request.forget) + len(job.request[HELD_OUT]) + len(job.request[HIDDEN]) == 12
    assert {r.form for r in job.request["forget_hard"]} >= {"choice"}
    assert {r.id for r in job.request[HIDDEN]} <= {r.id for r in job.request.retain}
    assert plan(made).splits[HIDDEN]["records"] == len(job.request[HIDDEN])
    assert HIDDEN not in prepare(Recipe(**recipe), tmp_path / "run").request


def test_rows_too_long_for_the_context_are_left_out_and_counted(recipe, tmp_path):
    job = prepare(Recipe(**recipe, stress=[CUE_REMOVED], max_length=90), tmp_path / "run")
    assert "forget_hard" not in job.request
    assert any("12 rows are longer than the context" in w for w in job.warnings)


@pytest.mark.parametrize(
    "stress", [{"forms": ["closed"]}, {"held_out": 1.0}, {"listed": 0.0}, {"listed": 1.5}, {"share": 0.5}]
)
def test_what_cannot_be_meant_is_refused(recipe, stress):
    with pytest.raises((ConfigError, ValueError)):
        Recipe(**recipe, stress=stress)


def test_short_ways_to_say_it(recipe):
    assert Recipe(**recipe, stress="choice").stress.forms == ("choice",)
    assert Recipe(**recipe, stress=["choice", "open", "choice"]).stress.forms == ("choice", "open")
    assert Recipe(**recipe, stress=None).stress.stress() == Stress()
