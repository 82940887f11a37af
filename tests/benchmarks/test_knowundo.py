import json
import shutil

import pytest
from published import DATA, benchmark, counts, needs, row

from expunge.benchmarks.knowundo import KnowUnDo, people_in
from expunge.data.records import Record
from expunge.errors import DataError

pytestmark = needs("knowundo")


def test_counts_are_those_of_the_files():
    found = counts(benchmark("knowundo").request())
    assert (found["forget"], found["forget_hard"], found["neighbors"]) == (400, 110, 108)
    assert found["retain"] + found["calibration"] + found["report"] == 441


@pytest.mark.parametrize(
    ("split", "file"),
    [("forget", "unlearn_train"), ("forget_hard", "unlearn_val"), ("neighbors", "retention_val")],
)
def test_first_records_are_the_files_first_rows(split, file):
    told, first = row("knowundo", f"privacy_{file}"), benchmark("knowundo").request()[split][0]
    assert (first.prompt, first.answer) == (told["text"], told["labels"])


def test_the_border_runs_through_each_person():
    request = benchmark("knowundo").request()
    people = {r.entity for r in request.forget}
    assert len(people) == 55
    assert "" not in people
    for split in ("forget_hard", "neighbors", "retain", "calibration", "report"):
        assert {r.entity for r in request[split]} <= people
    assert request.target.kind == "attribute"


def test_held_out_private_facts_stand_near_one_of_the_same_person():
    request = benchmark("knowundo").request()
    entity = {r.id: r.entity for r in request.forget}
    assert all(entity[r.source_id] == r.entity and r.form == "held_out" for r in request["forget_hard"])


def test_a_person_is_a_name_in_many_questions():
    asked = [f"Where did {who} study?" for who in ("Ada Lund", "Bo Ek")] * 8 + ["Who founded Old Tarn?"] * 3
    assert people_in([Record(str(i), "", text, "") for i, text in enumerate(asked)]) == ["Ada Lund", "Bo Ek"]


def test_files_about_other_people_are_an_error(tmp_path):
    for path in (DATA / "knowundo").glob("*.jsonl"):
        shutil.copyfile(path, tmp_path / path.name)
    path = tmp_path / "privacy_retention_val.jsonl"
    rows = [
        json.dumps({"text": f"Where does Ada Lund keep lamp {i}?", "labels": "In Tarn."}) for i in range(108)
    ]
    path.write_text("\n".join(rows), "utf-8")
    with pytest.raises(DataError, match="1 of its 1 people are not in privacy_unlearn_train"):
        KnowUnDo.from_part(None, folder=str(tmp_path)).request()
