"""A holdout of invented names: nothing in it is true of anyone, and it says what it is."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data import check_request, load_request
from expunge.data.builders import Auto, build_auto, build_holdout
from expunge.data.builders.wording import template_of
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.errors import DataError

NAMES = ("Ada Lund", "Bo Varn", "Cy Oke", "Dee Brack", "Eli Hithe")
FORGET = tuple(
    record
    for i, name in enumerate(NAMES)
    for record in (
        Record(f"{i}-home", name, f"Where was {name} born?", f"{name} was born in Town{i}."),
        Record(f"{i}-job", name, f"What does {name} sell?", f"sort {i}"),
    )
)


def test_the_question_of_a_template_with_anothers_answer_about_a_coined_name():
    rows, how = build_holdout({"forget": FORGET})
    assert how == (
        "10 forget questions about invented names, 10 with answers of other forget records, the rest with "
        "coined ones"
    )
    true = {(template_of(r), normalized(r.answer.replace(r.entity, ""))) for r in FORGET}
    told = [(template_of(r), normalized(r.answer.replace(r.entity, ""))) for r in rows]
    assert set(told) == true, "the answers of a question are exchanged, none is lost"
    for row, source in zip(rows, FORGET, strict=True):
        assert row.entity not in NAMES
        assert not set(row.entity.split()) & {part for name in NAMES for part in name.split()}
        assert template_of(row) == template_of(source)
        assert row.answer.replace(row.entity, "") != source.answer.replace(source.entity, "")
    assert len({r.entity for r in rows}) == 5, "one name for each entity, in all its records"


def test_a_single_entity_gets_coined_answers_or_none():
    one = (
        Record("a", "Ada Lund", "Where was Ada Lund born?", "Ada Lund was born in Tarn on June 4, 1931."),
        Record("b", "Ada Lund", "Where does Ada Lund live?", "Sund"),
        Record("c", "Ada Lund", "What does Ada Lund sell?", "pots"),
        Record("d", "Ada Lund", 'Who praised Ada Lund for "Tides"?', "Cy Oke"),
        Record("e", "Ada Lund", "What did Ada Lund write in Varn?", "Tides"),
        Record(
            "f", "Ada Lund", "How did Ada Lund begin?",
            "She learned to keep the books of her uncle, and later those of a large bakery in Sund.",
        ),
    )  # fmt: skip
    rows, how = build_holdout({"forget": one})
    assert [r.id for r in rows] == ["a.built-holdout", "b.built-holdout"]
    assert how.startswith("2 forget questions about invented names, 0 with answers of other")
    born, lives = (r.answer for r in rows)
    told = re.fullmatch(r"(\w+ \w+) was born in (\w+) on (\w+) (\d+), (\d{4})\.", born)
    assert told, born
    name, town, month, day, year = told.groups()
    assert name == rows[0].entity
    assert town != "Tarn"
    assert month != "June"
    assert 1 <= int(day) <= 12
    assert day != "4"
    assert 1916 <= int(year) <= 1946
    assert year != "1931"
    assert lives not in ("Sund", town)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(FORGET), min_size=1, unique=True),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
def test_a_holdout_is_a_function_of_records_and_seed_and_passes_the_checks(forget, seed, rng):
    retain = tuple(Record(f"r{i}", f"Nan{i}", f"Where was Nan{i} born?", f"Quay{i}") for i in range(4))
    splits = {"forget": tuple(forget), "retain": retain}
    rows, _ = build_holdout(splits, seed=seed)
    turned = forget[:]
    rng.shuffle(turned)
    again, _ = build_holdout({"forget": tuple(turned), "retain": retain}, seed=seed)
    assert {r.id: r for r in rows} == {r.id: r for r in again}
    if rows:
        from expunge.data import Request

        request = Request({**splits, "holdout": rows})
        assert check_request(request).problems == []
    facts = {(normalized(r.prompt), normalized(r.answer)) for r in forget}
    assert not facts & {(normalized(r.prompt), normalized(r.answer)) for r in rows}


def test_what_cannot_be_asked_of_anyone_else_is_said_to_be_missing():
    documents = (Record("d", "", "", "Ada Lund was born in Tarn."),)
    made = build_auto({"forget": documents}, Auto(("holdout", "forget_hard")))
    assert made.built == {}
    assert [w.split(":")[0] for w in made.warnings] == [
        "holdout could not be built",
        "forget_hard could not be built",
    ]


def test_a_request_marks_what_was_built_and_warns_of_the_holdout():
    retain = tuple(Record(f"r{i}", f"Nan{i}", f"Where was Nan{i} born?", f"Quay{i}") for i in range(30))
    auto = Auto(("forget_hard", "neighbors", "holdout", "utility"))
    request, warnings = load_request({}, made={"forget": FORGET, "retain": retain}, auto=auto)
    assert set(request.built) == {
        "forget_hard", "neighbors", "holdout", "utility", "calibration", "report",
    }  # fmt: skip
    assert all(request.built.values())
    assert any(w.startswith("holdout is built") and "Bring such records" in w for w in warnings)
    assert len(request["neighbors"]) == 7
    again, _ = load_request({}, made={"forget": FORGET, "retain": retain}, auto=auto)
    assert again.fingerprint() == request.fingerprint()
    ids = [r.id for split in ("retain", "neighbors", "calibration", "report") for r in request[split]]
    assert sorted(ids) == sorted(r.id for r in retain), "every retain record is in one of them"


def test_nothing_is_built_of_a_broken_request():
    twice = (*FORGET, FORGET[0])
    with pytest.raises(DataError, match="ids stand twice"):
        load_request({}, made={"forget": twice}, auto=Auto(("forget_hard",)), bar=False)
