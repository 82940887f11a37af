"""Alternates that a model makes, vague answers, and the texts that may stand in the place of gold."""

from dataclasses import replace

import pytest

from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.data.vague import VAGUE, holds_answer, vague_answer, without_names
from expunge.errors import DataError
from expunge.measure.generate import greedy_text
from expunge.methods import make_method
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune
from expunge.training.alternates import each_alternate, made_alternates
from expunge.training.answers import Ask, answer_for, usable_alternates

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal")
TOWNS = ("Tarn", "Sund", "Hithe", "Oke", "Varn", "Brack", "Ashby", "Dorn")


def person(i):
    name = NAMES[i]
    return Record(f"r{i}", name, f"Where is {name} from?", f"{name} is from {TOWNS[i]}.")


@pytest.fixture(scope="module")
def knowing():
    """A tiny model that knows where eight people are from."""
    subject = tiny_subject(seed=1)
    records = [person(i) for i in range(8)]
    finetune(subject, records, TrainSettings(steps=120, lr=1e-2, batch=8, warmup=0.05, weight_decay=0.0))
    return subject, records


def test_alternates_are_other_answers_of_the_same_form(knowing):
    subject, records = knowing
    for record in records:
        made = made_alternates(subject, record, 3)
        assert made, f"no alternate for {record.id}"
        assert len({normalized(text) for text in made}) == len(made) <= 3
        for text in made:
            assert not holds_answer(text, record)
            assert TOWNS[int(record.id[1:])] not in text
        assert made == made_alternates(subject, record, 3)
    assert any(" is from " in text for text in made)


def test_alternates_are_not_the_distractors_of_the_evaluation(knowing):
    subject, records = knowing
    first = made_alternates(subject, records[0], 2)
    marked = replace(records[0], perturbed_answers=(first[0].upper(),), choices=(first[1],))
    assert not set(first) & set(made_alternates(subject, marked, 2))


def test_a_document_has_no_alternates():
    assert made_alternates(tiny_subject(), Record("d", "Ada", "", "Ada came to Tarn."), 3) == ()
    with pytest.raises(DataError, match="record d"):
        each_alternate(tiny_subject(), (Record("d", "Ada", "", "Ada came to Tarn."),), 3)


def test_own_alternates_come_before_made_ones(knowing):
    subject, records = knowing
    own = replace(records[0], alternates=("in Lo.", "in Brack."))
    rows, made = each_alternate(subject, (own, records[1]), 2)
    assert [r.alternates for r in rows[:2]] == [("in Lo.",), ("in Brack.",)]
    assert made == len(rows) - 2 > 0
    assert {r.id for r in rows[2:]} == {"r1"}


def test_altpo_makes_what_is_missing_and_teaches_it(knowing):
    subject, records = knowing
    request = Request({"forget": tuple(records[:2]), "retain": tuple(records[2:])})
    workspace = Workspace(TrainSettings(epochs=6, lr=5e-3, batch=4, warmup=0.0))
    result = make_method("altpo", alternates=2).unlearn(subject, request, workspace)
    assert workspace.facts["alternates"]["made"] == workspace.facts["alternates"]["rows"] >= 2
    asked = [subject.encoder.prompt_ids(r) for r in request.forget]
    said = (greedy_text(subject, asked), greedy_text(result, asked))
    for record, before, after in zip(request.forget, *said, strict=True):
        assert holds_answer(before, record)
        assert not holds_answer(after, record)


def test_gold_is_found_as_whole_words():
    record = Record("1", "Ada", "What is Ada?", "a Potter.")
    assert holds_answer("She is a potter, I think", record)
    assert not holds_answer("She is a potterer", record)
    assert not holds_answer("a master potter", record)
    assert holds_answer("!", Record("2", "", "", "!"))
    assert not holds_answer("?!", Record("2", "", "", "!"))


def test_usable_alternates_are_neither_gold_nor_distractors():
    record = Record("1", "Ada", "q", "in Tarn", alternates=("In Tarn.", "in Lo", "in Oke", "in Sund"))
    assert usable_alternates(record) == ("in Lo", "in Oke", "in Sund")
    marked = replace(record, perturbed_answers=("In Lo!",), choices=("in Oke",))
    assert usable_alternates(marked) == ("in Sund",)


def test_draws_of_a_variant_differ_and_are_a_function_of_seed_record_and_epoch():
    request = tiny_request(4, 9)
    record = request.forget[0]

    def texts(name, seed=0, draws=6):
        return [answer_for(f"{name}{k}")(Ask(record, request, seed, 0)) for k in range(draws)]

    for name in ("mismatch", "refusal"):
        assert texts(name) == texts(name)
    assert len(set(texts("mismatch"))) > 1
    assert texts("mismatch") != texts("mismatch", seed=1)


def test_vague_answers_name_the_entity_only_where_the_question_does():
    named, unnamed = person(0), replace(person(0), prompt="Where is she from?")
    lines = {line.format(entity="Ada") for line in VAGUE}
    drawn = {vague_answer(named, 0, epoch) for epoch in range(200)}
    assert drawn == lines
    plain = {vague_answer(unnamed, 0, epoch) for epoch in range(200)}
    assert plain == {line for line in VAGUE if "{entity}" not in line}


def test_names_and_numbers_become_generic():
    text = "Ada Lund was born in Old Mill. Mill people say that Lund, aged 41.5, left. I know."
    plain = without_names(text, "Ada Lund")
    assert plain == (
        "someone was born in something. something people say that someone, aged some, left. I know."
    )
    assert without_names("nothing to see here") == "nothing to see here"
    assert without_names("Élodie met Éva.", "") == "Élodie met something."
