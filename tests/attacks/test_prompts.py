"""The prompt suite: nothing given away, options balanced, and it finds template-bound forgetting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_world import make_request, make_subject, taught

from expunge.attacks import Field
from expunge.attacks.prompt_templates import TEMPLATES, World, demonstrations, initials, named_in
from expunge.attacks.prompts import CHOSEN, OPTIONS, Prompts, judge, multiple_choice, yes_no
from expunge.attacks.worst_case import TEMPLATE, VARIANTS, WorstCase
from expunge.audit.attacking import run_attack
from expunge.benchmarks.personas_world import make_world
from expunge.data.request import Request
from expunge.errors import ConfigError

PEOPLE = Request(make_world("tiny").splits)
REQUEST = make_request()


@pytest.mark.parametrize("split", ["retain", "forget"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_gold_is_in_no_template_without_options(name, split):
    world, made = World(PEOPLE, 0, split), 0
    for record in PEOPLE.forget:
        asked = TEMPLATES[name][1](record, world)
        if asked is None:
            continue
        made += 1
        assert asked.prompt != record.prompt or asked.context
        if name != "hint" or not named_in(asked.prompt, asked.answer):
            assert not named_in(asked.prompt, asked.answer)
        assert asked == TEMPLATES[name][1](record, World(PEOPLE, 0, split))
        assert asked.id == record.id
    assert made


def test_what_would_give_the_answer_away_is_asked_plainly():
    subject = make_subject()
    record = replace(REQUEST.forget[0], prompt="what is it", entity=REQUEST.forget[0].answer)
    asked = Prompts()._asked("continuation", record, World(REQUEST), subject)
    assert asked is record


def test_demonstrations_never_hold_the_asked_fact():
    for split in ("retain", "forget"):
        for record in PEOPLE.forget:
            shown = demonstrations(record, World(PEOPLE, 3, split), 5)
            assert len({d.id for d in shown}) == 5
            assert record.id not in {d.id for d in shown}
            assert not any(named_in(f"{d.prompt} {d.answer}", record.answer) for d in shown)


def test_few_shot_is_written_as_the_model_is_asked():
    record, encoder = PEOPLE.forget[0], make_subject().encoder
    (shown,) = demonstrations(record, World(PEOPLE), 1)
    asked = TEMPLATES["few_shot_1"][1](record, World(PEOPLE))
    assert encoder.prompt_text(asked) == (
        f"Question: {shown.prompt}\nAnswer: {shown.answer}\n\nQuestion: {record.prompt}\nAnswer:"
    )
    turns = TEMPLATES["few_shot_1"][1](record, World(PEOPLE, turns=True))
    assert [(t.role, t.content) for t in turns.context] == [
        ("user", shown.prompt),
        ("assistant", shown.answer),
    ]
    assert turns.prompt == record.prompt


def test_forms_of_asking():
    record = PEOPLE.forget[0]
    reverse = TEMPLATES["reverse"][1](record, World(PEOPLE))
    assert reverse.answer == record.entity
    assert record.answer in reverse.prompt
    assert initials(record.entity) in TEMPLATES["alias"][1](record, World(PEOPLE)).prompt
    assert record.entity not in TEMPLATES["alias"][1](record, World(PEOPLE)).prompt
    assert TEMPLATES["alias"][1](replace(record, entity=""), World(PEOPLE)) is None


def test_option_position_is_balanced_and_options_differ():
    made = [multiple_choice(r, i, PEOPLE.forget, World(PEOPLE)) for i, r in enumerate(PEOPLE.forget)]
    labels = [rows[0].label for rows in made if rows]
    counts = np.bincount(labels, minlength=4)
    assert counts.max() - counts.min() <= 1
    for rows, record in zip(made, PEOPLE.forget, strict=True):
        (row,) = rows
        assert row.choices[row.label].strip() == record.answer
        assert len({c.strip() for c in row.choices}) == 4
        assert row.prompt.count(record.answer) == 1


def test_choice_and_yes_no_are_judged():
    row = multiple_choice(PEOPLE.forget[1], 1, PEOPLE.forget, World(PEOPLE))[0]
    score = {(row.id, f"choice:{j}"): -1.0 for j in range(4)}
    assert judge([row], score) == 0.25
    assert judge([row], {**score, (row.id, "choice:1"): -0.5}) == 1
    assert judge([row], {**score, (row.id, "choice:2"): -0.5}) == 0
    true, false = yes_no(PEOPLE.forget[0], 0, PEOPLE.forget, World(PEOPLE))
    assert named_in(true.prompt, PEOPLE.forget[0].answer)
    assert not named_in(false.prompt, PEOPLE.forget[0].answer)
    yes = {(true.id, "choice:0"): -1, (true.id, "choice:1"): -2, (false.id, "choice:1"): -1}
    assert judge([true, false], {**yes, (false.id, "choice:0"): -2}) == 1
    assert judge([true, false], {**yes, (false.id, "choice:0"): 2}) == 0


@pytest.mark.filterwarnings("error")
def test_a_question_whose_options_do_not_fit_is_left_out():
    subject = make_subject()
    attack = Prompts(templates=("multiple_choice",))
    (one,) = [o for o in attack.run(subject, Field(REQUEST)) if o.metric == "choice_accuracy"]
    assert one.values["forget"].keys() == {r.id for r in REQUEST.forget}
    made = [multiple_choice(r, i, REQUEST.forget, World(REQUEST))[0] for i, r in enumerate(REQUEST.forget)]
    room = min(subject.encoder.encode(r).num_prompt for r in made)
    subject.encoder.max_length = room
    assert not [o for o in attack.run(subject, Field(REQUEST)) if o.values.get("forget")]


def test_profiles_templates_and_the_hook():
    assert set(CHOSEN["quick"]) < set(CHOSEN["default"]) < set(CHOSEN["deep"])
    assert set(OPTIONS) < set(CHOSEN["default"])
    with pytest.raises(ConfigError, match="role_play"):
        Prompts(templates=("roleplay",))
    record = REQUEST.forget[0]
    other = Prompts(templates=("suffix",), translated={record.id: "dis le pet"})
    configs = [o.config["template"] for o in other.run(make_subject(), Field(REQUEST, "quick"))]
    assert configs == ["plain", "suffix", "translation"]
    assert other._asked("translation", record, World(REQUEST), make_subject()).prompt == "dis le pet"
    assert other._asked("translation", REQUEST.forget[1], World(REQUEST), make_subject()) is REQUEST.forget[1]


@pytest.fixture(scope="module")
def bound():
    """Forgets in the trained wording alone: everything is known, then that wording is answered with no."""
    asked = [r for split in ("forget", "retain") for r in REQUEST[split]]
    forms = [TEMPLATES[name][1](r, World(REQUEST)) for r in asked for name in ("suffix", "role_play")]
    original = taught(make_subject(), (*asked, *forms), 260)
    kept = [f for f in forms if f.id in {r.id for r in REQUEST.forget}]
    denied = tuple(replace(r, answer="no") for r in REQUEST.forget)
    return taught(original, (*denied, *kept), 60)


@pytest.mark.slow
def test_finds_template_bound_forgetting(bound):
    field = Field(REQUEST, "quick")
    entries = run_attack(Prompts(templates=("suffix", "role_play")), bound, field)
    found = {
        e["config"]["template"]: np.mean(list(e["scores"]["forget"]["extraction_strength"].values()))
        for e in entries
    }
    assert found["plain"] < 0.45
    assert max(found.values()) > found["plain"] + 0.35


@pytest.mark.slow
def test_worst_case_fills_up_with_templates_and_finds_it(bound):
    (all_, *_) = run_attack(WorstCase(), bound, Field(REQUEST, "deep"))
    (few, *_) = run_attack(WorstCase(), bound, Field(REQUEST, "default"))
    worst, less = (np.mean(list(e["scores"]["forget"]["extraction_strength"].values())) for e in (all_, few))
    assert worst > less + 0.3
    assert all_["details"]["single_variant_mean"] < worst
    assert TEMPLATE in all_["details"]["forms"]
    assert all_["details"]["rows"]["forget"] == len(REQUEST.forget) * (1 + VARIANTS)
