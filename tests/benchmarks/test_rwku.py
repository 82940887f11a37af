from collections import Counter

import pytest
from published import benchmark, counts, needs, row

from expunge.benchmarks.rwku import FORGET, NEIGHBORS, Rwku, _form
from expunge.data.checks import check_request
from expunge.data.findings import Findings
from expunge.errors import ConfigError

pytestmark = needs("rwku")
KING = "Stephen King"


def test_counts_of_files_are_the_papers():
    data = benchmark("rwku").data
    assert {name: len(data[name]) for name in (*FORGET, *NEIGHBORS)} == FORGET | NEIGHBORS
    assert sum(FORGET.values()) == 13131
    assert sum(NEIGHBORS.values()) == 11379
    assert len({r.entity for r in data["forget_level3"]}) == 200


def test_first_records_are_the_files_rows():
    data = benchmark("rwku").data
    told = row("rwku", "forget_level1")
    first = data["forget_level1"][0]
    assert (first.prompt, first.answer, first.entity) == (told["query"], told["answer"], told["subject"])
    told = row("rwku", "neighbor_level2")
    first = data["neighbor_level2"][0]
    assert (first.prompt, first.answer, first.entity) == (told["query"], told["answer"], told["neighbor"])


def test_a_person_has_three_levels_and_neighbors():
    request = benchmark("rwku").request()
    assert {r.entity for r in (*request.forget, *request["forget_hard"])} == {KING}
    found = counts(request)
    sizes = {name: found[name] for name in ("forget", "forget_hard", "neighbors", "forget_mia", "retain_mia")}
    assert sizes == {
        "forget": 18, "forget_hard": 29, "neighbors": 52, "forget_mia": 55, "retain_mia": 37,
    }  # fmt: skip
    assert Counter(r.form for r in request["forget_hard"]) == {
        "context_hint": 5, "prefix_injection": 4, "synonym_manipulation": 4, "role_play": 4, "reverse": 3,
        "incontext_learning": 3, "cross_lingual": 2, "multiple_choice": 2, "affirmative_suffix": 2,
    }  # fmt: skip
    assert (request.target.kind, request.target.aim) == ("entity", "remove_capability")


def test_neighbors_are_asked_once_and_are_not_the_person():
    near = benchmark("rwku").request()["neighbors"]
    assert len({(r.prompt, r.answer) for r in near}) == len(near)
    assert KING not in {r.entity for r in near}


def test_what_is_retained_is_about_others_and_never_names_the_person():
    request = benchmark("rwku").request()
    kept = [r for split in ("retain", "calibration", "report") for r in request[split]]
    assert len({r.entity for r in kept}) == 20
    assert not [r for r in kept if KING.casefold() in f"{r.entity} {r.prompt} {r.answer}".casefold()]


def test_questions_about_truth_have_the_right_choice():
    told, record = row("rwku", "1_Stephen_King_truthful"), benchmark("rwku").request()["utility"][0]
    assert record.choices == tuple(told["mc1_targets"]["choices"])
    assert told["mc1_targets"]["labels"][record.label] == 1
    assert record.prompt == told["question"]


def test_several_targets_follow_the_papers_order():
    made = benchmark("rwku", targets=3)
    assert made.subjects == (KING, "Confucius", "Bruce Lee")
    assert {r.entity for r in made.request().forget} == set(made.subjects)
    assert benchmark("rwku", "Bruce Lee").subjects == ("Bruce Lee",)


def test_passages_are_forgotten_and_every_probe_asks_for_one():
    made = Rwku.from_part(None, folder=benchmark("rwku").folder, forget_on="passages")
    assert made.files()["1_Stephen_King_passage"].rows == 128
    made.__dict__["data"] = {**benchmark("rwku").data, "1_Stephen_King_passage": _passages(made)}
    request = made.request()
    assert all(r.is_document for r in request.forget)
    assert Counter(r.form for r in request["forget_hard"])["cloze"] == 8
    assert len(request["forget_hard"]) == 47
    assert not check_request(request).problems


def _passages(made: Rwku):
    name = "1_Stephen_King_passage"
    return made.read(name, made.files()[name], Findings())


def test_forms_are_words_of_forms():
    kinds = ["cross lingual (Spanish)", "cross-lingual (French)", "reverse query", "role play"]
    assert list(map(_form, kinds)) == ["cross_lingual", "cross_lingual", "reverse", "role_play"]


def test_an_unknown_person_is_answered_with_the_nearest():
    found = Findings()
    Rwku.from_part("1_Steven_King", folder=benchmark("rwku").folder).check(benchmark("rwku").data, found)
    assert [(p.where, p.what) for p in found.problems] == [("benchmark.part", "'1_Steven_King' is unknown")]
    assert "1_Stephen_King" in found.problems[0].fix


def test_bad_options_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        Rwku.from_part("Ada Lund", targets=0, others=2, forget_on="passage", batch=0)
    where = [p.where.removeprefix("benchmark.") for p in caught.value.problems]
    assert where == ["batch", "targets", "others", "forget_on"]


def test_the_hub_serves_all_people_at_once(monkeypatch):
    monkeypatch.delenv("EXPUNGE_RWKU", raising=False)
    files = Rwku.from_part("Bruce Lee").files()
    assert files["forget_level3"].hub == "jinzhuoran/RWKU:forget_level3:test"
    assert {"forget_mia", "retain_mia", "truthful"} <= files.keys()
    assert "passage" not in files
