from collections import Counter

import numpy as np
import pytest
from published import benchmark, counts, needs, row

from expunge.benchmarks.lume import Lume
from expunge.data.checks import check_request
from expunge.errors import ConfigError, DataError
from expunge.evidence import Evidence, Row

pytestmark = needs("lume")


def lume(part: str | None = None, **options) -> Lume:
    return benchmark("lume", part, **options)


def test_counts_are_those_of_the_release():
    found = counts(lume().request())
    assert (found["forget"], found["forget_members"], found["holdout"]) == (2732, 150, 150)
    assert found["retain"] + found["calibration"] + found["report"] == 2734


@pytest.mark.parametrize(
    ("part", "forget", "retain"), [("task1", 486, 492), ("task2", 1500, 1500), ("task3", 746, 742)]
)
def test_tasks_share_the_files_out(part, forget, retain):
    request = lume(part).request()
    kept = sum(len(request[split]) for split in ("retain", "calibration", "report"))
    assert (len(request.forget), kept) == (forget, retain)
    assert all(r.id.startswith(f"{part}.") for r in request.forget)
    assert ("holdout" in request) == (part == "task3")
    assert request.target.kind == ("document" if part == "task1" else "entity")


def test_first_record_is_the_files_first_row():
    told, first = row("lume", "forget"), lume().request().forget[0]
    assert (first.prompt, first.answer, first.style) == (f"{told['input']} ", told["output"], "raw")
    assert first.id == "task1.8f24c511-a319-4a9f-80c2-ca6fac131233sc1"
    told, second = row("lume", "retain", 4), lume().data["retain"][4]
    assert (second.prompt, second.answer) == (told["input"], told["output"])


def test_a_document_is_asked_for_by_completions_and_by_questions():
    forget = lume("task2").request().forget
    asked = Counter((r.entity, r.style) for r in forget)
    assert len({r.entity for r in forget}) == 250
    assert {asked[r.entity, "raw"] for r in forget} == {1}
    assert {asked[r.entity, "question"] for r in forget} == {5}


def test_one_way_to_ask_may_be_held_out():
    request = lume("task3", hard="qa").request()
    assert {r.style for r in request.forget} == {"raw"}
    assert {(r.style, r.form) for r in request["forget_hard"]} == {("question", "question")}
    assert len(request.forget) == len(request["forget_hard"]) == 373
    entity = {r.id: r.entity for r in request.forget}
    assert all(entity[r.source_id] == r.entity for r in request["forget_hard"])
    assert not check_request(request).problems


def test_validation_sets_are_the_small_ones():
    made = Lume.from_part("task1", folder=lume().folder, validation=True)
    request = made.request()
    assert len(request.forget) == 48
    assert {r.id for r in request.forget} <= {r.id for r in lume("task1").request().forget}


def test_members_are_documents_of_what_is_to_go():
    request = lume().request()
    assert {r.entity for r in request["forget_members"]} <= {r.entity for r in request.forget}
    assert not {r.entity for r in request["holdout"]} & {r.entity for r in request.forget}
    assert all(r.is_document for r in (*request["forget_members"], *request["holdout"]))


def test_an_unknown_way_to_ask_is_named():
    with pytest.raises(ConfigError, match="'qs' is unknown"):
        Lume.from_part("all", hard="qs")


def test_there_is_no_copy_on_the_hub(monkeypatch):
    monkeypatch.delenv("EXPUNGE_LUME", raising=False)
    with pytest.raises(DataError, match="forget: is not on the hub"):
        Lume.from_part("task2").request()


def test_the_task_score_reads_what_was_generated_for_every_task():
    made = Lume.from_part("all", folder=lume().folder, validation=True)
    request = made.request()
    none = np.zeros(1, dtype=np.float32)

    def model(knows_forget: bool, knows_report: bool) -> dict[str, Evidence]:
        told = {"forget": knows_forget, "report": knows_report}
        return {
            split: Evidence(
                split,
                [
                    Row(
                        r.id, split, r.entity, "gold", none, none == 0, none.astype(np.int32), none, none + 1,
                        False, False, 3, 5, 5, 64, answer=r.answer, generated=r.answer if knows else "nobody",
                    )
                    for r in request[split]
                ],
            )
            for split, knows in told.items()
        }  # fmt: skip

    score = made.task_score(model(False, True))
    assert score.value == pytest.approx(1)
    assert len(score.details["components"]) == 12
    assert made.task_score(model(True, True)).value == 0
    assert made.task_score(model(False, False)).value == 0
