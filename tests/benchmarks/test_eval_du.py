import json
import shutil

import pytest
from published import DATA, benchmark, counts, needs, row

from expunge.benchmarks.deduction import blocks, closure
from expunge.benchmarks.eval_du import EvalDu
from expunge.data.checks import check_request
from expunge.errors import DataError
from expunge.evidence import Evidence, Row

pytestmark = needs("eval_du")
FEW = ("267", "106", "283")
"""Targets with few, six and many minimal sets."""


def eval_du(part: str | None = None, **options) -> EvalDu:
    return benchmark("eval_du", part, **options)


def test_counts_are_those_of_the_files():
    made = eval_du()
    assert (len(made.facts), len(made.rules), len(made.minimal_sets)) == (400, 48, 55)
    found = counts(made.request())
    kept = found["retain"] + found["calibration"] + found["report"]
    assert found["forget"] + found["implied"] + kept == 400
    assert (found["forget"], found["forget_hard"], found["biographies"]) == (55, 165, 300)


def test_records_are_the_files_rows():
    told, record = row("eval_du", "relationships", 267), eval_du("267").request().forget[0]
    assert (record.prompt, record.answer) == (told["question4"], told["answer4"])
    sentence, yes, no = eval_du("267").request()["forget_hard"]
    assert (sentence.prompt.strip(), sentence.answer, sentence.form) == (
        told["question"].strip(), told["answer"], "cloze",
    )  # fmt: skip
    assert (yes.prompt, yes.answer, no.prompt, no.answer) == (
        told["question2"], told["answer2"], told["question3"], told["answer3"],
    )  # fmt: skip


@pytest.mark.parametrize("part", FEW)
def test_without_a_minimal_set_the_target_does_not_follow(part):
    made = eval_du(part)
    for facts in made.minimal_sets[int(part)][:3]:
        assert int(part) in facts
        assert blocks(facts, int(part), made.facts, made.rules)
        left_in = max(facts - {int(part)})
        assert not blocks(facts - {left_in}, int(part), made.facts, made.rules)


def test_facts_in_minimal_sets_are_neither_forget_nor_retain():
    made = eval_du("106")
    request = made.request()
    number = {split: {int(r.id.partition("-")[2]) for r in request[split]} for split in ("forget", "implied")}
    assert number["forget"] == {106}
    assert number["forget"] | number["implied"] == frozenset().union(*made.minimal_sets[106])


def test_a_deep_request_asks_for_a_smallest_set():
    request = eval_du("106", deep=True).request()
    assert {r.id for r in request.forget} == {f"fact-{i}" for i in (9, 56, 106, 187, 243, 398)}
    assert not check_request(request).problems


def evidence(made: EvalDu, known: set[int]) -> dict[str, Evidence]:
    """A model that answers these facts rightly and the others with nonsense."""
    import numpy as np

    none = np.zeros(1, dtype=np.float32)
    model = {}
    for split in made.request():
        rows = [
            Row(
                r.id, split, r.entity, "gold", none, none == 0, none.astype(np.int32), none, none + 1, False,
                False, 3, 5, 5, 64, answer=r.answer,
                generated=f" {r.answer.title()}." if _number(r.id) in known else "nobody",
            )
            for r in made.request()[split]
        ]  # fmt: skip
        model[split] = Evidence(split, rows)
    return model


def _number(record: str) -> int:
    return int(record.partition("-")[2].partition(".")[0])


def test_forgetting_the_target_alone_is_superficial():
    made = eval_du("108")  # minimal sets {108, 150, 57} and {108, 150, 66}
    assert made.minimal_sets[108] == (frozenset({108, 150, 57}), frozenset({108, 150, 66}))
    model = evidence(made, set(range(400)) - {108})
    score = made.deep_unlearning(model)[108]
    assert (score.superficial, score.recall, score.accuracy) == (True, 1 / 3, 1.0)
    assert made.deducible(model) == {108}


def test_a_forgotten_minimal_set_is_deep():
    made = eval_du("108")
    model = evidence(made, set(range(400)) - {108, 150, 66, 0, 1})
    score = made.deep_unlearning(model)[108]
    assert (score.superficial, score.recall) == (True, 1.0)
    assert score.accuracy == pytest.approx(395 / 397)
    assert not made.deducible(model)


def test_what_follows_from_all_facts_holds_them():
    made = eval_du()
    assert set(made.facts) < closure(made.facts, made.rules)


def copied(tmp_path):
    for path in (DATA / "eval_du").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def test_a_graph_of_another_release_is_an_error(tmp_path):
    path = copied(tmp_path) / "graph.json"
    graph = json.loads(path.read_text("utf-8"))
    graph["edges"][7] = graph["edges"][7][::-1]
    path.chmod(0o644)
    path.write_text(json.dumps(graph), "utf-8")
    with pytest.raises(DataError, match="400 edges, 1 of which are not what relationships asks there"):
        EvalDu.from_part(None, folder=str(tmp_path)).request()


def test_a_cut_or_missing_file_of_rules_is_an_error(tmp_path):
    path = copied(tmp_path) / "rules.json"
    rules = json.loads(path.read_text("utf-8"))
    path.chmod(0o644)
    path.write_text(json.dumps(rules[:40]), "utf-8")
    with pytest.raises(DataError, match="rules: has 40 entries, expected 48"):
        EvalDu.from_part(None, folder=str(tmp_path)).request()
    path.write_text(json.dumps(rules)[:500], "utf-8")
    with pytest.raises(DataError, match=r"rules\.json: is no JSON"):
        EvalDu.from_part(None, folder=str(tmp_path)).request()
    path.unlink()
    with pytest.raises(DataError, match=r"no file of it is named rules\.json"):
        EvalDu.from_part(None, folder=str(tmp_path)).request()


def test_an_unknown_target_is_named():
    with pytest.raises(DataError, match=r"benchmark\.part: '1' is no target"):
        EvalDu.from_part("1", folder=eval_du().folder).request()
