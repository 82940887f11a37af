"""Exact match and the task score of SemEval 2025, by hand."""

import pytest
from made_evidence import forget, row

from expunge.metrics import compute
from expunge.metrics.semeval import SemevalTaskScore


def told(record, answer, generated, split="forget"):
    return row(0.5, record=record, answer=answer, generated=generated, split=split, entity=record)


@pytest.mark.parametrize(
    ("generated", "value"),
    [("Tarn", 1), (" tarn. ", 1), ("Tarn, in the north", 0), ("", 0), ("Old Tarn", 0)],
)
def test_exact_match_is_of_the_whole_text(generated, value):
    evidence = forget(told("r", "Tarn.", generated))
    assert compute("exact_match", evidence, "forget").value == value


def test_exact_match_skips_what_was_not_generated():
    score = compute("exact_match", forget(told("r", "Tarn", None)), "forget")
    assert (score.value, score.skipped) == (None, {"not_generated": 1})


def model(task="task2", completion="green lamp by the sea", answer="no"):
    """What must go: half of four words, one of two questions; what must stay: all, one of two."""
    gone = [
        told(f"{task}.a-1sc1", "red lamp over water", "red lamp"),
        told(f"{task}.a-1qa0", "Tarn", "Tarn"),
        told(f"{task}.a-1qa1", "1960", "1961"),
    ]
    kept = [
        told(f"{task}.b-2sc1", "green lamp by the sea", completion),
        told(f"{task}.b-2qa0", "Lund", "Lund"),
        told(f"{task}.b-2qa1", "yes", answer),
    ]
    return forget(*gone) | forget(*kept, split="report")


def test_task_score_is_the_harmonic_mean_of_four():
    score = compute(SemevalTaskScore(), model(), "forget")
    assert score.details["components"] == {
        "forget.task2_sc": 0.5, "forget.task2_qa": 0.5, "report.task2_sc": 1.0, "report.task2_qa": 0.5,
    }  # fmt: skip
    assert score.value == pytest.approx(4 / (2 + 2 + 1 + 2))
    assert score.better == "higher"


def test_each_task_with_records_counts():
    both = model("task1")
    for split, evidence in model("task3", answer="yes").items():
        both[split] = forget(*both[split], *evidence, split=split)[split]
    score = compute(SemevalTaskScore(), both, "forget")
    assert len(score.details["components"]) == 8
    assert score.value == pytest.approx(8 / (2 + 2 + 1 + 2 + 2 + 2 + 1 + 1))


def test_one_part_at_zero_makes_it_zero():
    score = compute(SemevalTaskScore(), model(completion="nothing"), "forget")
    assert score.value == 0
    assert score.details["zero_components"] == ["report.task2_sc"]


def test_other_benchmarks_are_questions_of_one_task():
    other = forget(told("r", "Tarn", "Lund")) | forget(told("s", "Lund", "Lund"), split="report")
    score = compute(SemevalTaskScore(), other, "forget")
    assert score.details["components"] == {"forget.all_qa": 1.0, "report.all_qa": 1.0}
    assert score.value == 1
