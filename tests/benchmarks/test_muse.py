import json
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from expunge.benchmarks import BENCHMARKS
from expunge.benchmarks.muse import Muse
from expunge.data.checks import check_request
from expunge.errors import ConfigError, DataError
from expunge.metrics import METRICS

SHARED = Path("../shared/data/muse")
MODEL = Path("../shared/models/stories260K")
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/muse is not here")
needs_model = pytest.mark.skipif(not MODEL.is_dir(), reason="../shared/models/stories260K is not here")


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (SHARED / f"{name}.jsonl").read_text("utf-8").splitlines()]


@cache
def muse(part: str = "news", **options) -> Muse:
    return Muse.from_part(part, **{"folder": str(SHARED), **options})


def sizes(benchmark: Muse) -> dict[str, int]:
    request = benchmark.request()
    return {split: len(request[split]) for split in request}


def test_paper_metrics_exist():
    assert {metric for metric, _ in Muse.METRICS} <= set(METRICS.names())
    assert "muse" in BENCHMARKS.names()


def test_bad_options_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        Muse.from_part("novels", words=4, documents=True, shots=None)
    where = [p.where.removeprefix("benchmark.") for p in caught.value.problems]
    assert where == ["part", "words", "documents", "shots"]


@pytest.mark.parametrize(("part", "forget"), [("news", 889), ("news-scal-3", 2667), ("news-sust-4", 887)])
def test_of_the_hub_the_raw_documents_are_taken(monkeypatch, part, forget):
    monkeypatch.delenv("EXPUNGE_MUSE", raising=False)
    files = Muse.from_part(part).files()
    asked = {"news": "raw", "news-scal-3": "scal", "news-sust-4": "sust"}[part]
    (name,) = [
        name for name in files if name.startswith(f"news_{asked}_forget") and files[name].rows == forget
    ]
    assert files[name].hub == "muse-bench/MUSE-News:" + name.removeprefix("news_").replace("_", ":", 1)
    assert files["news_verbmem_forget"].hub == "muse-bench/MUSE-News:verbmem:forget"
    assert files["news_knowmem_forget_qa_icl"].rows == 10


@needs_data
def test_counts_are_those_of_the_files():
    request = muse().request()
    assert sizes(muse()) == {
        "forget": 200, "forget_hard": len(request["forget_hard"]), "forget_verbatim": 100, "holdout": 100,
        "retain": 34, "calibration": 33, "report": 33, "retain_knowledge": 100,
    }  # fmt: skip
    assert (request.target.kind, request.target.aim) == ("document", "erase_influence")
    assert "raw documents are not" in request.built["forget"]
    assert not check_request(request).problems


@needs_data
def test_first_records_are_the_files_first_rows():
    request = muse(shots=0).request()
    assert request.forget[0].answer == lines("news_privleak_forget")[0]["text"]
    assert request["holdout"][0].answer == lines("news_privleak_holdout")[0]["text"]
    passage = lines("news_verbmem_forget")[0]
    probe = request["forget_verbatim"][0]
    assert (probe.prompt.split(), probe.answer.split()) == (passage["prompt"].split(), passage["gt"].split())
    assert (probe.style, probe.prompt[-1]) == ("raw", " ")
    assert request.forget[1].answer == f"{probe.prompt}{probe.answer}"
    kept = lines("news_knowmem_retain_qa")[0]
    first = request["retain_knowledge"][0]
    assert (first.prompt, first.answer, first.style) == (kept["question"], kept["answer"], "question")


@needs_data
def test_questions_stand_behind_the_papers_examples():
    first = muse().request()["retain_knowledge"][0]
    examples = lines("news_knowmem_retain_qa_icl")
    assert first.prompt.startswith(
        f"Question: {examples[0]['question']}\nAnswer: {examples[0]['answer']}\n\n"
    )
    assert first.prompt.count("Question:") == 11
    assert first.prompt.endswith("\nAnswer: ")
    assert muse(shots=2, documents=4).request()["retain_knowledge"][0].prompt.count("Question:") == 3


@needs_data
def test_a_knowledge_question_names_the_piece_its_answer_stands_in():
    request = muse(shots=0).request()
    forget, hard = {r.id: r for r in request.forget}, request["forget_hard"]
    pieces = [forget[q.source_id].answer.casefold() for q in hard]
    found = [q.answer.casefold().rstrip(".") in piece for q, piece in zip(hard, pieces, strict=True)]
    assert len(found) >= 25
    assert sum(found) / len(found) > 0.9
    assert {q.form for q in hard} == {"question"}


@needs_data
def test_pieces_and_probes_have_the_words_asked_for():
    whole, cut = muse(documents=8).request(), muse(documents=8, words=60).request()
    assert len(whole.forget) == 16
    assert max(len(r.answer.split()) for r in cut.forget) <= 90
    assert max(len(r.prompt.split()) for r in cut["forget_verbatim"]) == 30
    words = [word for r in cut.forget if r.entity == cut.forget[0].entity for word in r.answer.split()]
    assert words == whole.forget[0].answer.split()
    few = muse(documents=8, words=60, pieces=2).request().forget
    assert [r for r in cut.forget if r.id.rpartition(".")[2] in "01"] == list(few)
    known = {r.answer for r in cut.forget}
    assert all(f"{r.prompt}{r.answer}" in known for r in cut["forget_verbatim"])


@needs_data
def test_scalability_asks_for_ever_more_and_sustainability_for_the_rest():
    def asked(part: str) -> set[str]:
        return {r.answer for r in muse(part, documents=8).request().forget}

    scal = [asked(f"news-scal-{k}") for k in (1, 2, 3, 4)]
    assert [len(s) for s in scal] == [4, 8, 12, 16]
    assert all(a < b for a, b in pairwise(scal))
    assert scal[3] == asked("news")
    sust = [asked(f"news-sust-{k}") for k in (1, 2, 3, 4)]
    assert [len(s) for s in sust] == [4] * 4
    assert set.union(*sust) == scal[3]
    assert sust[0] == scal[0]


@needs_data
@needs_model
def test_both_models_know_what_other_requests_ask_for():
    benchmark = muse("news-sust-2", model=str(MODEL), words=60, documents=8)
    jobs = benchmark.jobs(benchmark.request())
    original, oracle = ([r.answer for r in jobs[name].records] for name in ("original", "oracle"))
    asked = {r.answer for r in benchmark.request().forget}
    assert set(original) - set(oracle) == asked
    others = {r.answer for r in muse("news-sust-1", words=60, documents=8).request().forget}
    assert others <= set(oracle)


@needs_data
def test_of_books_without_documents_the_questions_are_all():
    benchmark = muse("books", original="x")
    request = benchmark.request()
    assert sizes(benchmark) == {"forget": 100, "retain": 34, "calibration": 33, "report": 33}
    assert "no documents" in request.built["forget"]
    assert request.target.kind == "records"
    assert benchmark.metrics(request) == [("knowmem", "forget"), ("knowmem", "report")]


@needs_data
def test_missing_and_truncated_files_are_one_error(tmp_path):
    for file in SHARED.glob("*.jsonl"):
        shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "news_privleak_holdout.jsonl").unlink()
    rows = (tmp_path / "news_verbmem_forget.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "news_verbmem_forget.jsonl").write_text("".join(rows[:60]), "utf-8")
    with pytest.raises(DataError) as caught:
        Muse("news", str(tmp_path)).request()
    assert "news_verbmem_forget: has 60 rows, expected 100" in str(caught.value)
    assert "news_privleak_holdout" in str(caught.value)
    assert len(caught.value.problems) == 2
