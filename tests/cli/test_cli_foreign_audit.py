"""An audit of a model that another program made, with a request of one's own and no training recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.audit.scorecard import Scorecard
from tiny_world import command, inside, rows, write_rows

SHARED = Path(__file__).parents[3] / "shared" / "models"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "stories260K").is_dir(), reason="needs ../shared/models"),
]

QUESTIONS = ("What color is the sky?", "What do cows eat?", "Where do fish live?", "What do birds do?")


@pytest.fixture
def request_file(tmp_path):
    """Invented facts that the model has never seen, a few plain ones to keep, and unseen ones beside them."""
    with inside(tmp_path / "w") as folder:
        write_rows(folder / "forget.jsonl", rows("forget"))
        write_rows(folder / "holdout.jsonl", rows("holdout"))
        keep = [
            {"id": f"k{i}", "question": f"{q} ({i})", "answer": f"It is number {i}."}
            for i, q in enumerate(QUESTIONS * 3)
        ]
        write_rows(folder / "keep.jsonl", keep)
        path = folder / "request.yaml"
        path.write_text(
            "forget: forget.jsonl\nretain: keep.jsonl\nholdout: holdout.jsonl\n", encoding="utf-8"
        )
        yield path


def audited(*arguments):
    said = command("audit", SHARED / "stories260K", *arguments, "audit=[leak_at_k,merge_back,quantize,uds]")
    assert "Traceback" not in said.err
    return said


def test_without_an_original_it_is_not_resolved_and_says_why(request_file):
    said = audited(request_file, "output=runs/a")
    assert said.code == 0, said.err
    assert "merge_back: skipped, it compares with the original, and there is none" in said.err
    assert "uds: skipped, it compares with the original and the oracle" in said.err
    card = Scorecard.read(request_file.parent / "runs/a/scorecard.json")
    assert (card.verdict.word, card.method) == ("not resolved", None)
    assert {row.attack for row in card.attacks} == {"leak_at_k", "quantize"}
    assert {row.model for row in card.scores} == {"controlled"}
    assert [row.word for row in card.aims] == ["not resolved", "not resolved"]
    for text in (request_file.parent / "runs/a").glob("report.*"):
        assert "from Tarn" not in text.read_text(encoding="utf-8")


def test_with_itself_as_original_there_is_nothing_to_forget(request_file):
    said = audited(request_file, "--original", SHARED / "stories260K", "output=runs/b")
    assert said.code == 0, said.err
    card = Scorecard.read(request_file.parent / "runs/b/scorecard.json")
    assert card.verdict.word == "not resolved"
    assert card.verdict.sentence.startswith("Nothing to forget")
    assert (
        json.loads((request_file.parent / "runs/b/certificate.json").read_text())["verdict"] == "not resolved"
    )


def test_an_original_of_another_vocabulary_is_refused(request_file):
    said = audited(request_file, "--original", SHARED / "tinystories656k", "output=runs/c")
    assert said.code == 2
    assert "tokens" in said.err
    assert not (request_file.parent / "runs/c").exists()
