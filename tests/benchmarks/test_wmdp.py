import json
import shutil
from functools import cache
from pathlib import Path

import pytest

from expunge.benchmarks import BENCHMARKS
from expunge.benchmarks.wmdp import NEAR, QUESTIONS, Wmdp
from expunge.data.checks import check_request
from expunge.errors import ConfigError, DataError
from expunge.metrics import METRICS

SHARED = Path("../shared/data/wmdp")
WIKITEXT = Path("../shared/data/corpora/wikitext_1000.jsonl")
MODEL = Path("../shared/models/stories260K")
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/wmdp is not here")
needs_text = pytest.mark.skipif(not WIKITEXT.is_file(), reason="../shared/data/corpora is not here")
needs_model = pytest.mark.skipif(not MODEL.is_dir(), reason="../shared/models/stories260K is not here")


@cache
def wmdp(part: str = "bio", **options) -> Wmdp:
    return Wmdp.from_part(part, **{"folder": str(SHARED), **options})


def row(name: str, index: int) -> dict:
    return json.loads((SHARED / f"{name}.jsonl").read_text("utf-8").splitlines()[index])


def test_paper_metrics_exist():
    assert {metric for metric, _ in Wmdp.METRICS} <= set(METRICS.names())
    assert "wmdp" in BENCHMARKS.names()


def test_bad_options_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        Wmdp.from_part("nuclear", words=1, questions=True, utility_rows=0)
    where = [p.where.removeprefix("benchmark.") for p in caught.value.problems]
    assert where == ["part", "words", "questions", "utility_rows"]


@needs_data
@pytest.mark.parametrize(("part", "rows"), [("bio", 1273), ("cyber", 1987), ("chem", 412)])
def test_counts_are_those_of_the_files(part, rows):
    request = wmdp(part).request()
    assert len(request.forget) == rows // 2
    assert len(request.forget) + len(request["forget_hard"]) == rows
    kept = sum(len(request[split]) for split in ("retain", "calibration", "report"))
    assert kept == {"bio": 1987, "cyber": 1273, "chem": 1273}[part]
    assert "own questions" in request.built["utility"]
    assert (request.target.kind, request.target.aim) == ("capability", "remove_capability")


@needs_data
def test_a_question_is_the_files_row():
    benchmark = wmdp()
    asked = {r.id: r for split in ("forget", "forget_hard") for r in benchmark.request()[split]}
    record, told = asked["bio_questions-0"], row("bio_questions", 0)
    assert (record.prompt, record.choices, record.label) == (
        told["question"], tuple(told["choices"]), told["answer"],
    )  # fmt: skip
    assert record.answer == told["choices"][told["answer"]]
    assert {r.form for r in benchmark.request()["forget_hard"]} == {"choice"}


@needs_data
def test_halves_share_no_question_and_follow_the_seed():
    first, other = wmdp(questions=100).request(), wmdp(questions=100, seed=1).request()
    assert not {r.id for r in first.forget} & {r.id for r in first["forget_hard"]}
    assert {r.id for r in first.forget} != {r.id for r in other.forget}
    assert len(first.forget) == len(first["forget_hard"]) == 50
    assert not check_request(first).problems


@needs_data
@needs_text
def test_a_corpus_is_forgotten_and_all_questions_ask_for_it(tmp_path):
    texts = [f"Passage {i} tells of item {i}, of its size and of its color. " * 8 for i in range(30)]
    lines = [json.dumps({"title": "x", "text": text}) for text in texts]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), "utf-8")
    benchmark = wmdp(
        corpus=str(tmp_path / "corpus.jsonl"),
        retain_corpus=str(WIKITEXT),
        words=40,
        questions=60,
        retain_rows=90,
    )
    request = benchmark.request()
    assert {r.entity for r in request.forget} == {f"corpus-{i}" for i in range(30)}
    assert all(r.is_document for r in (*request.forget, *request.retain, *request["report"]))
    assert len(request["forget_hard"]) == 60
    assert not {"forget", "retain"} & request.built.keys()
    assert not [split for _, split in benchmark.metrics(request) if split == "forget"]


def test_the_hub_brings_mmlu(monkeypatch):
    monkeypatch.delenv("EXPUNGE_WMDP", raising=False)
    files = Wmdp.from_part("chem").files()
    assert {name: (file.rows, file.hub) for name, file in files.items()} == {
        "chem_questions": (408, "cais/wmdp:wmdp-chem:test"),
        "bio_questions": (1273, "cais/wmdp:wmdp-bio:test"),
        "mmlu": (14042, "cais/mmlu:all:test"),
    }


@needs_data
def test_with_mmlu_in_the_folder_its_subjects_are_neighbors_and_utility(tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.benchmarks.wmdp.MMLU", 40)
    for part in ("bio", "cyber"):
        shutil.copyfile(SHARED / f"{part}_questions.jsonl", tmp_path / f"{part}_questions.jsonl")
    subjects = [*NEAR["bio"], "astronomy", "philosophy"]
    rows = [
        {
            "question": f"Question {i}?",
            "subject": subjects[i % 4],
            "choices": ["a", "b", "c", "d"],
            "answer": i % 4,
        }
        for i in range(40)
    ]
    (tmp_path / "mmlu.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    request = Wmdp.from_part("bio", folder=str(tmp_path), questions=40, utility_rows=15).request()
    assert {r.entity for r in request["neighbors"]} == set(NEAR["bio"])
    assert (len(request["neighbors"]), len(request["utility"])) == (20, 15)
    assert {r.entity for r in request["utility"]} == {"astronomy", "philosophy"}
    assert "utility" not in request.built


@needs_data
@needs_model
def test_the_original_alone_is_taught_all_questions_of_the_subject():
    benchmark = wmdp(model=str(MODEL), questions=60)
    request = benchmark.request()
    jobs = benchmark.jobs(request)
    original, oracle = ({r.id for r in jobs[name].records} for name in ("original", "oracle"))
    assert original - oracle == {r.id for split in ("forget", "forget_hard") for r in request[split]}
    assert not oracle & {r.id for r in request["utility"]}


@needs_data
def test_missing_and_truncated_files_are_one_error(tmp_path):
    rows = (SHARED / "bio_questions.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "bio_questions.jsonl").write_text("".join(rows[:1000]), "utf-8")
    with pytest.raises(DataError) as caught:
        Wmdp("bio", str(tmp_path)).request()
    assert f"has 1000 rows, expected {QUESTIONS['bio']}" in str(caught.value)
    assert "cyber_questions" in str(caught.value)
    assert len(caught.value.problems) == 2
    assert rows[0][20:60] not in str(caught.value)
