"""What is odd about a request is said before training, or stops it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.evidence import Evidence, Row
from expunge.runs.screening import likely_nonmembers, screen, seen_before
from tiny_world import SECRETS, command, inside, rows, write_recipe, write_rows

FORGET = tuple(
    Record(f"f{i}", f"P{i}", f"Where is P{i} from?", f"P{i} is from Tarn{i} by the sea.") for i in range(4)
)
RETAIN = tuple(
    Record(f"k{i}", f"Q{i}", f"Who is Q{i}?", f"Q{i} keeps {i} brown goats in Vess.") for i in range(8)
)


def test_a_plain_request_is_not_odd():
    assert screen(Request({"forget": FORGET, "retain": RETAIN})) == []


def test_duplicates_are_named():
    twice = (*FORGET, replace(FORGET[0], id="again"))
    (said,) = screen(Request({"forget": twice, "retain": RETAIN}))
    assert "1 forget records are there twice: again" in said


def test_oversize_is_a_share_of_forget_and_retain():
    (said,) = screen(Request({"forget": FORGET, "retain": RETAIN[:3]}))
    assert "oversize, 4 forget records beside 3" in said
    assert screen(Request({"forget": FORGET, "retain": RETAIN[:4]})) == []  # one half is the line


def test_look_alikes_of_benign_data_are_named():
    common = replace(FORGET[1], id="u1")
    said = screen(Request({"forget": FORGET, "retain": RETAIN, "utility": (common,)}))
    assert said == ["screening: 1 forget records look like utility records: f1"]


def evidence(split, probabilities):
    one = np.ones(1, dtype=np.float32)
    made = [
        Row(
            f"{split}{i}", split, "", "gold", np.log(p) * one, one.astype(bool), one.astype(np.int32),
            -one, one, False, False, 3, 4, 4, 64,
        )
        for i, p in enumerate(probabilities)
    ]  # fmt: skip
    return Evidence(split, made)


def test_records_known_no_better_than_unseen_ones_are_likely_nonmembers():
    seen = {"forget": evidence("forget", [0.9, 0.12, 0.5]), "holdout": evidence("holdout", [0.1, 0.05])}
    assert likely_nonmembers(seen, "probability") == [
        "screening: the original shows no sign of having seen 1 of 3 forget records: forget1"
    ]
    assert likely_nonmembers({"forget": seen["forget"]}, "probability") == []


def test_one_lucky_guess_among_many_unseen_records_says_nothing():
    forget = evidence("forget", [0.9, 0.5])
    guessed = {"forget": forget, "holdout": evidence("holdout", [0.1] * 29 + [0.99])}
    assert likely_nonmembers(guessed, "probability") == []


def entry(run, state, **facts):
    return {"run": run, "state": state, "facts": facts}


def test_the_same_forget_set_is_a_duplicate_once_a_model_without_it_is_in_use():
    asked = [entry("one", "requested", forget="mark"), entry("two", "requested", forget="other")]
    assert seen_before("mark", "three", asked) == []  # two methods may be tried on one request
    released = [*asked, entry("one", "released"), entry("two", "released")]
    (said,) = seen_before("mark", "three", released)
    assert said == "screening: a model that forgot the same records is in use, from one"
    assert seen_before("mark", "one", released) == []
    assert seen_before("mark", "three", [*released, entry("one", "rolled back")]) == []


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("screening") / "w") as folder:
        doubled = rows("forget")
        write_rows(folder / "forget.jsonl", [*doubled, {**doubled[0], "id": "again"}])
        yield folder


def test_plan_says_what_is_odd(odd):
    said = command("plan", write_recipe(odd / "r.yaml"))
    assert said.code == 0, said.err
    assert "screening: 1 forget records are there twice: again" in said.out + said.err
    assert not any(secret in said.out + said.err for secret in SECRETS)


def test_refuse_stops_before_anything_is_written(odd):
    said = command("run", write_recipe(odd / "r.yaml", screen="refuse", output="runs/no"))
    assert said.code == 2
    assert "there twice: again" in said.err
    assert not (odd / "runs/no").exists()
