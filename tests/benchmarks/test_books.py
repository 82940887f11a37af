import json
import shutil
from functools import cache
from pathlib import Path

import pytest

import expunge
from expunge.benchmarks import BENCHMARKS
from expunge.benchmarks.books import PARAGRAPHS, SAME_AUTHOR, Books
from expunge.benchmarks.documents import in_words, nearest_to, pieces
from expunge.data.checks import check_request
from expunge.data.records import Record
from expunge.errors import ConfigError, DataError
from expunge.metrics import METRICS
from tiny_world import command

SHARED = Path("../shared/data/corpora")
MODEL = Path("../shared/models/stories260K")
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/corpora is not here")
needs_model = pytest.mark.skipif(not MODEL.is_dir(), reason="../shared/models/stories260K is not here")


@cache
def books(part: str = "alice_in_wonderland", **options) -> Books:
    return Books.from_part(part, **{"folder": str(SHARED), **options})


def text(book: str) -> str:
    return " ".join((SHARED / f"gutenberg_{book}.txt").read_text("utf-8").split())


def test_paper_metrics_exist():
    assert {metric for metric, _ in Books.METRICS} <= set(METRICS.names())
    assert "books" in BENCHMARKS.names()
    assert list(Books.card.fields["parts"]) == list(PARAGRAPHS)


def test_bad_options_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        Books.from_part("alice", passages=1, words="many")
    where = [p.where.removeprefix("benchmark.") for p in caught.value.problems]
    assert where == ["part", "passages", "words"]
    assert "alice_in_wonderland" in str(caught.value)


@needs_data
def test_counts_are_those_of_the_files():
    benchmark = books()
    assert {name.removeprefix("gutenberg_"): len(rows) for name, rows in benchmark.data.items()} == PARAGRAPHS
    request = benchmark.request()
    counts = {split: len(request[split]) for split in request}
    assert counts == {
        "forget": 40, "forget_hard": 40, "holdout": 40, "neighbors": 40,
        "retain": 80, "calibration": 80, "report": 80,
    }  # fmt: skip
    assert (request.target.kind, request.target.aim) == ("document", "erase_influence")
    assert not check_request(request).problems


@needs_data
def test_the_first_passages_are_the_books_words():
    benchmark = books(words=50)
    request, first = benchmark.request(), benchmark.data["gutenberg_alice_in_wonderland"][0]
    assert first.answer == (SHARED / "gutenberg_alice_in_wonderland.txt").read_text("utf-8").split("\n\n")[0]
    own, neighbor = text("alice_in_wonderland"), text("through_the_looking_glass")
    for split in ("forget", "holdout"):
        assert all(r.answer in own and 50 <= len(r.answer.split()) < 75 for r in request[split])
    assert all(r.answer in neighbor for r in request["neighbors"])
    assert all(r.answer not in own + neighbor for r in request["retain"])
    assert own.index(request["holdout"][0].answer) > own.index(request.forget[-1].answer)


@needs_data
def test_verbatim_probes_are_halves_of_a_passage():
    request = books(passages=4).request()
    forget = {r.id: r for r in request.forget}
    for probe in request["forget_hard"]:
        assert f"{probe.prompt}{probe.answer}" == forget[probe.source_id].answer
        assert abs(len(probe.prompt.split()) - len(probe.answer.split())) <= 1
        assert (probe.style, probe.form) == ("raw", "verbatim")


@needs_data
@pytest.mark.parametrize("part", ["time_machine", "wizard_of_oz"])
def test_neighbors_are_by_the_same_author(part):
    request = books(part, passages=4).request()
    assert {r.entity.rpartition("-")[0] for r in request["neighbors"]} == {SAME_AUTHOR.get(part)} - {None}
    kept = {r.entity.rpartition("-")[0] for r in (*request.retain, *request["report"])}
    assert not kept & {part, SAME_AUTHOR.get(part)}


@needs_data
@needs_model
def test_no_model_reads_the_closing_chapters():
    benchmark = books(passages=4, model=str(MODEL))
    request = benchmark.request()
    jobs = benchmark.jobs(request)
    original, oracle = ({r.id for r in jobs[name].records} for name in ("original", "oracle"))
    assert original - oracle == {r.id for r in request.forget}
    assert {r.id for r in request["neighbors"]} <= oracle
    assert not original & {r.id for r in request["holdout"]}


@needs_data
def test_missing_and_truncated_books_are_one_error(tmp_path):
    for file in SHARED.glob("gutenberg_*.txt"):
        shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "gutenberg_time_machine.txt").unlink()
    alice = tmp_path / "gutenberg_alice_in_wonderland.txt"
    alice.write_text(alice.read_text("utf-8")[:5000], "utf-8")
    with pytest.raises(DataError) as caught:
        Books("wizard_of_oz", str(tmp_path)).request()
    assert "rows, expected 831" in str(caught.value)
    assert "gutenberg_time_machine.txt" in str(caught.value)
    assert len(caught.value.problems) == 2


@needs_data
def test_more_passages_than_a_book_has_are_an_error():
    with pytest.raises(DataError, match=r"Lower benchmark\.passages to \d+"):
        books(passages=400).request()


def test_without_a_folder_it_says_so(monkeypatch):
    monkeypatch.delenv("EXPUNGE_BOOKS", raising=False)
    with pytest.raises(DataError, match="is not on the hub"):
        Books("time_machine").request()


# Documents in pieces -----------------------------------------------------------------------------------


def test_pieces_lose_no_word_and_none_is_less_than_half():
    for length in (2, 3, 5, 7):
        for total in range(1, 30):
            words = [f"w{i}" for i in range(total)]
            parts = in_words(" ".join(words), length)
            assert " ".join(parts).split() == words
            assert all(2 * len(part.split()) >= min(length, 2 * total) for part in parts)
            assert all(len(part.split()) < 1.5 * length for part in parts)


def test_whole_documents_are_their_own_entity():
    document = Record("d", "", "", "a  b", "raw")
    assert pieces([document], None) == [Record("d", "d", "", "a  b", "raw")]


def test_a_question_without_known_words_gets_the_first_document():
    told = [Record("a", "", "", "x"), Record("b", "", "", "y z")]
    found = nearest_to([Record("q", "", "z?", "…"), Record("p", "", "w?", "…")], told)
    assert [r.id for r in found] == ["b", "a"]


@pytest.mark.slow
@needs_data
@needs_model
def test_a_book_is_trained_unlearned_and_scored_by_its_metrics(tmp_path, monkeypatch):
    root = Path.cwd()
    settings = {
        "model": str((root / MODEL).resolve()), "folder": str((root / SHARED).resolve()), "passages": 2,
        "words": 16, "retain_rows": 6, "epochs": 6, "lr": 1e-2,
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    recipe = {
        "benchmark": {"name": "books", "part": "time_machine", **settings}, "method": "ga", "audit": "none",
        "train": {"epochs": 1}, "max_new_tokens": 4, "output": "run",
    }  # fmt: skip
    Path("book.yaml").write_text(json.dumps(recipe), "utf-8")
    said = command("run", "book.yaml")
    assert said.code == 0, said.err
    card = expunge.Scorecard.read(Path("run", "scorecard.json"))
    known = {model: card.score("verbmem", "forget_hard", model).value for model in ("original", "oracle")}
    assert known["original"] >= known["oracle"]
    assert card.score("privleak", "forget", "controlled").value is not None
    assert card.score("extraction_strength", "forget", "original").n == 2
