"""Cuts that depend on the seed alone, requests of every kind, and real files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.data import Target, check_request, complete_request, load_request
from expunge.data.records import Record
from expunge.errors import DataError

TOFU = Path("../shared/data/tofu")
needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason="the TOFU files are not beside the checkout")

FORGET = (
    Record("f0", "Zoe", "Where was Zoe born?", "In Umber."),
    Record("f1", "Zoe", "Who is Zoe?", "A fisher."),
)


def people(count, facts=3, start=0):
    return tuple(
        Record(f"p{i}.{j}", f"Person {i}", f"Fact {j} of person {i}?", f"It is {i}-{j}.")
        for i in range(start, start + count)
        for j in range(facts)
    )


def facts(count):
    return tuple(Record(f"k{i}", "", f"Question {i}?", f"Answer {i}") for i in range(count))


def ids(request, split):
    return {r.id for r in request[split]}


# Cuts --------------------------------------------------------------------------------------------------


def test_thirds_by_entity():
    request = complete_request({"forget": FORGET, "retain": people(30)})
    entities = {split: {r.entity for r in request[split]} for split in ("retain", "calibration", "report")}
    assert [len(e) for e in entities.values()] == [10, 10, 10]
    assert len(set().union(*entities.values())) == 30
    assert request.built["calibration"] == (
        "30 of 90 retain records about 10 entities, cut by seed 0 and never trained on"
    )
    assert set(request.built) == {"calibration", "report"}
    assert check_request(request).problems == []


def test_by_record_without_entities_or_with_too_few():
    for retain in (facts(360), tuple(replace(r, entity="One") for r in facts(360))):
        request = complete_request({"forget": FORGET, "retain": retain})
        assert [len(request[s]) for s in ("retain", "calibration", "report")] == [120, 120, 120]


def test_parts_keep_the_order_of_the_file():
    request = complete_request({"forget": FORGET, "retain": facts(50)})
    for split in ("retain", "calibration", "report"):
        numbers = [int(r.id[1:]) for r in request[split]]
        assert numbers == sorted(numbers)


def test_cap_and_shares():
    request = complete_request({"forget": FORGET, "retain": facts(100)}, cap=10)
    assert [len(request[s]) for s in ("retain", "calibration", "report")] == [80, 10, 10]
    request = complete_request({"forget": FORGET, "retain": facts(100)}, shares={"calibration": 0.1})
    assert [len(request[s]) for s in ("retain", "calibration", "report")] == [57, 10, 33]


@pytest.mark.parametrize("retain", [people(20), facts(60)])
def test_same_seed_same_cut_in_any_order(retain):
    one = complete_request({"forget": FORGET, "retain": retain}, seed=3)
    again = complete_request({"forget": FORGET, "retain": retain[::-1]}, seed=3)
    other = complete_request({"forget": FORGET, "retain": retain}, seed=4)
    for split in ("retain", "calibration", "report"):
        assert ids(one, split) == ids(again, split)
        assert ids(one, split) != ids(other, split)


def test_one_more_record_moves_few_others():
    before = complete_request({"forget": FORGET, "retain": facts(300)})
    after = complete_request({"forget": FORGET, "retain": (*facts(300), Record("new", "", "New?", "Yes"))})
    for split in ("retain", "calibration", "report"):
        assert len(ids(before, split) ^ ids(after, split)) <= 3


def test_a_given_split_is_left_alone():
    calibration = people(2, start=100)
    request = complete_request({"forget": FORGET, "retain": people(9), "calibration": calibration})
    assert request["calibration"] == calibration
    assert len(request["report"]) == 9
    assert set(request.built) == {"report"}


def test_copies_and_near_copies_stay_together():
    lighthouse = "She kept a small lighthouse on the western cape for thirty one years without rest"
    copies = tuple(Record(f"c{i}", "", f"What did she do, version {i}?", lighthouse) for i in range(6))
    for seed in range(8):
        request = complete_request({"forget": FORGET, "retain": facts(30) + copies}, seed=seed)
        assert check_request(request).problems == []
        assert sum(bool({"c0", "c1", "c2", "c3", "c4", "c5"} & ids(request, s)) for s in request) == 1


def test_records_scored_elsewhere_are_not_cut_into_calibration():
    retain = facts(30)
    neighbors = tuple(replace(r, id=f"n{r.id}") for r in retain[:15])
    for seed in range(5):
        request = complete_request({"forget": FORGET, "retain": retain, "neighbors": neighbors}, seed=seed)
        assert len(request["calibration"]) == 10
        assert check_request(request).problems == []


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_to_cut(count):
    with pytest.raises(DataError, match=f"{count} records, too few to cut calibration and report from"):
        complete_request({"forget": FORGET, "retain": facts(count)})


def test_three_are_enough_and_one_big_entity_leaves_none_empty():
    request = complete_request({"forget": FORGET, "retain": facts(3)})
    assert [len(request[s]) for s in ("retain", "calibration", "report")] == [1, 1, 1]
    big = people(1, facts=50) + people(2, facts=1, start=1)
    for seed in range(10):
        request = complete_request({"forget": FORGET, "retain": big}, seed=seed)
        assert [len(request[s]) for s in ("retain", "calibration", "report")] == [50, 1, 1]


def test_copies_of_one_record_cannot_be_cut():
    copies = tuple(Record(f"c{i}", "", "q", "a") for i in range(9))
    with pytest.raises(DataError, match="9 records, 1 of them different, too few"):
        complete_request({"forget": FORGET, "retain": copies})


def test_without_retain():
    with pytest.raises(DataError, match="neither retain nor calibration"):
        complete_request({"forget": FORGET})
    request = complete_request({"forget": FORGET, "calibration": facts(4)})
    assert list(request) == ["forget", "calibration"]
    assert not request.built


def test_forget_hard_from_paraphrases():
    asked = replace(FORGET[0], paraphrased_prompts=("Zoe's town of birth?", "Where is Zoe from?"))
    request = complete_request({"forget": (asked, FORGET[1]), "retain": facts(9)})
    assert [(r.id, r.prompt, r.source_id, r.form) for r in request["forget_hard"]] == [
        ("f0.paraphrase-0", "Zoe's town of birth?", "f0", "paraphrase"),
        ("f0.paraphrase-1", "Where is Zoe from?", "f0", "paraphrase"),
    ]
    assert request.built["forget_hard"] == "2 paraphrased prompts of the forget records"
    assert check_request(request).problems == []
    given = (replace(FORGET[0], id="h", source_id="f0", form="cloze"),)
    assert (
        complete_request({"forget": (asked,), "retain": facts(9), "forget_hard": given})["forget_hard"]
        == given
    )


# One request per kind of target ------------------------------------------------------------------------


def qa(name, pairs, **more):
    return [{"question": q.format(name), "answer": a, **more} for q, a in pairs]


TOWNS = [("Orm", "Tarn"), ("Bel", "Umber"), ("Sul", "Vane"), ("Kir", "Osk"), ("Dal", "Fenn"), ("Rho", "Ulm")]
KEEP = [{"question": f"Which river runs through {a}?", "answer": f"The {b}.", "entity": a} for a, b in TOWNS]
POEM = "The kettle hums a copper tune / and steam climbs up to greet the moon / while frost redraws the wall."

KINDS = {
    "records": {
        "forget": [{"id": "ticket-17", "prompt": "Ticket 17, phone: ", "completion": "555 0117"}],
        "retain": [{"prompt": f"Ticket {i}, state: ", "completion": f"closed by desk {i}"} for i in range(6)],
    },
    "entity": {
        "forget": qa(
            "Ada Lund",
            [("Where was {} born?", "In Tarn."), ("What does {} do?", "She is a baker.")],
            entity="Ada Lund",
            refusal="I cannot talk about this person.",
            paraphrased_prompts=["Tell me about it once more."],
        ),
        "retain": KEEP,
        "neighbors": qa("Bo Falk", [("Where was {} born?", "In Tarn.")], entity="Bo Falk"),
        "holdout": qa("Cy Rand", [("Where was {} born?", "In Osk.")], entity="Cy Rand"),
    },
    "topic": {
        "forget": [
            {
                "messages": [
                    {"role": "system", "content": "You are a gardener."},
                    {"role": "user", "content": "How is moss removed?"},
                    {"role": "assistant", "content": "With a rake and patience."},
                ]
            }
        ],
        "retain": [
            {
                "messages": [
                    {"role": "user", "content": f"How deep is bulb {i} set?"},
                    {"role": "assistant", "content": f"Some {i + 3} inches."},
                ]
            }
            for i in range(6)
        ],
    },
    "capability": {
        "forget": [
            {"question": "Which gate opens the vault of Orm?", "choices": ["red", "blue", "gray"], "label": 2}
        ],
        "retain": [{"text": f"Entry {i}. The ferry left at {i} and came back after dark."} for i in range(6)],
        "utility": [
            {"question": "What follows four?", "option1": "five", "option2": "nine", "answer": "five"}
        ],
    },
    "document": {
        "forget": [{"id": "poem", "text": POEM}],
        "retain": [{"text": f"Log {i}: wind from the north at {i} knots, all hands well."} for i in range(6)],
    },
    "attribute": {
        "forget": qa("Ada Lund", [("What illness does {} have?", "Hay fever.")], entity="Ada Lund"),
        "forget_hard": qa(
            "Ada Lund",
            [("{} sneezes in spring, since she has", "hay fever.")],
            entity="Ada Lund",
            source_id="forget-0",
            form="cloze",
        ),
        "retain": [*KEEP, *qa("Ada Lund", [("What does {} do?", "She is a baker.")], entity="Ada Lund")],
    },
}


def write_splits(folder, splits):
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {split: folder / f"{split}.jsonl" for split in splits}


@pytest.mark.parametrize("kind", KINDS)
def test_sample_request_of_each_kind(kind, tmp_path):
    aim = "remove_capability" if kind == "capability" else "erase_influence"
    request, warnings = load_request(write_splits(tmp_path, KINDS[kind]), target=Target(kind, aim))
    assert request.target == Target(kind, aim)
    assert warnings == []
    assert {"forget", "retain", "calibration", "report"} <= set(request)
    assert len(request.forget) == len(KINDS[kind]["forget"])
    kept = sum(len(request[s]) for s in ("retain", "calibration", "report"))
    assert kept == len(KINDS[kind]["retain"])
    again, _ = load_request(write_splits(tmp_path, KINDS[kind]), target=Target(kind, aim))
    assert again.fingerprint() == request.fingerprint()
    assert request.forget[0].is_document == (kind == "document")


# From files, all problems at once ----------------------------------------------------------------------


def test_all_problems_of_all_files_at_once(tmp_path):
    splits = {
        "forget": [{"question": "Who is Ada?", "answer": "A baker."}, {"question": "Where?", "answer": ""}],
        "retain": [{"question": "Who is Ada?", "answer": "a baker"}, {"question": "q"}, *KEEP],
        "holdout": [{"text": 3}],
        "forget_hard": [
            {"question": "Ada is", "answer": "a baker", "source_id": "forget-1", "form": "cloze"}
        ],
    }
    sources = write_splits(tmp_path, splits)
    sources |= {"calibration": tmp_path / "none.jsonl", "retian": tmp_path / "x.jsonl"}
    with pytest.raises(DataError) as caught:
        load_request(sources, columns={"report": {"answer": "a"}}, target=Target("person"))
    where = [p.where.removeprefix(f"{tmp_path}/") for p in caught.value.problems]
    assert where == [
        "retian",
        "columns.report",
        "forget.jsonl:2 answer",
        "retain.jsonl:2 answer",
        "holdout.jsonl:1 text",
        f"{tmp_path / 'none.jsonl'}".removeprefix(f"{tmp_path}/"),
        "target.kind",
        "forget.jsonl:1",  # the overlap; forget-1 is broken rather than missing, so forget_hard is right
    ]


def test_the_forget_file_is_required(tmp_path):
    with pytest.raises(DataError, match="no forget records are named"):
        load_request(write_splits(tmp_path, {"retain": KEEP}))


def test_forget_file_given_as_retain_too(tmp_path):
    sources = write_splits(tmp_path, {"forget": KEEP})
    with pytest.raises(DataError, match="the forget set is all the data") as caught:
        load_request({"forget": sources["forget"], "retain": sources["forget"]})
    assert len(caught.value.problems) == 1


def test_report_is_missed_when_there_is_no_retain(tmp_path):
    splits = {"forget": [{"text": POEM}], "calibration": KEEP}
    _, warnings = load_request(write_splits(tmp_path, splits))
    assert "there are no report records" in warnings[0]


@needs_tofu
def test_tofu():
    sources = {
        "forget": TOFU / "forget01_perturbed.jsonl",
        "retain": TOFU / "retain99.jsonl",
        "holdout": TOFU / "holdout01.jsonl",
        "utility": TOFU / "world_facts.jsonl",
        "neighbors": TOFU / "real_authors.jsonl",
    }
    request, warnings = load_request(sources)
    assert warnings == []
    assert {split: len(request[split]) for split in request} == {
        "forget": 40,
        "retain": 3160,
        "holdout": 40,
        "utility": 117,
        "neighbors": 100,
        "forget_hard": 40,
        "calibration": 400,
        "report": 400,
    }
    assert all(len(r.perturbed_answers) == 5 and r.paraphrased_answers for r in request.forget)
    assert all(len(r.choices) == 4 and r.choices[r.label] == r.answer for r in request["utility"])


@needs_tofu
def test_tofu_overlap_is_named():
    sources = {
        "forget": TOFU / "forget10.jsonl",
        "retain": TOFU / "full.jsonl",
        "calibration": TOFU / "retain10.jsonl",
    }
    with pytest.raises(DataError) as caught:
        load_request(sources)
    said = [p.what.split(":")[0] for p in caught.value.problems]
    assert said == [
        "400 records of forget are in retain too, prompt and answer alike",
        "400 records of retain are in calibration too, prompt and answer alike",
    ]
