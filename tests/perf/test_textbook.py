"""The bench compares like with like: the textbook way and expunge give the same numbers, step by step."""

from __future__ import annotations

from functools import partial

import pytest
from perf.contests import Aside, Contest, false_answers, generation, teacher_forced, training
from perf.world import make_reciter, make_records, make_subject

from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods.likelihood.ascent import GradientDifference
from expunge.methods.likelihood.npo import NPO
from expunge.methods.representation.rmu import RMU
from perf import bench, memory, textbook

small = partial(make_subject, 32, 64, 3, 2)


@pytest.mark.parametrize("method", [NPO(), GradientDifference(), RMU(layer=1)], ids=lambda m: m.name)
def test_every_step_has_the_textbook_loss(method: NPO):
    """Later losses depend on earlier gradients: equal throughout means equal gradients as well."""
    ways = training("", 1.0, method, records=12, batch=4, build=small).ways
    ours, grouped = ([step() for step in ways[way]] for way in ("expunge", "grouped"))
    assert len(ours) == 3
    assert ours == pytest.approx(grouped, rel=1e-4, abs=1e-4)


def test_every_metric_of_the_suite_has_the_textbook_value():
    ways = teacher_forced(12, build=small).ways
    (found,) = (piece() for piece in ways["expunge"])
    for name, piece in zip(textbook.METRICS, ways["textbook"], strict=True):
        values = piece()
        ours = list(found[name].values())
        assert ours == pytest.approx(values[: len(ours)], rel=1e-4, abs=1e-5), name


def test_every_false_answer_has_the_textbook_loss():
    ways = false_answers(4, build=small).ways
    plain = [value for piece in ways["textbook"] for value in piece()]
    (ours,) = (piece() for piece in ways["expunge"])
    assert len(ours) == 4 * 7
    assert ours == pytest.approx(plain, rel=1e-5)


def test_extraction_strength_of_the_textbook_sees_a_memorized_answer():
    subject, known = make_reciter(3, "forget")
    rows = [subject.encoder.encode(record) for record in known]
    values = textbook.suite(subject.model, [textbook.pad(rows)], ["x"] * 3, "extraction_strength")
    assert values == [1.0, 1.0, 1.0]


def test_generation_says_the_same_and_the_reciter_recites():
    ways = generation(6).ways
    plain = [text for piece in ways["textbook"] for text in piece()]
    (ours,) = (piece() for piece in ways["expunge"])
    subject, known = make_reciter(6, "forget")
    assert plain == ours == [record.answer.strip() for record in known]
    evidence = score_sheet(subject, make_sheet(subject.encoder, known, "forget"))
    assert all(row.hits.all() for row in evidence.rows)


def test_lengths_are_those_of_tofu():
    subject = small()
    rows = [subject.encoder.encode(record) for record in make_records(400, "forget")]
    assert sum(row.num_prompt for row in rows) / 400 == pytest.approx(18, abs=1.5)
    assert sum(row.num_targets for row in rows) / 400 == pytest.approx(31, abs=2)


def test_a_second_model_shows_in_the_live_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_large", small)
    found = memory.memory()
    weights = sum(p.numel() * p.element_size() for p in small().model.parameters())
    assert found["NPO"]["textbook"] - found["GradDiff"]["textbook"] >= weights
    assert found["NPO"]["expunge"] < 1.02 * found["GradDiff"]["expunge"]
    assert found["GradDiff"]["expunge"] >= 3 * weights  # weights and both moments of the optimizer


def test_a_row_says_what_is_padding_and_what_arithmetic():
    seconds = {"textbook": [8.0], "grouped": [4.0], "expunge": [3.0]}
    contest = Contest("x", 0.5, "work", {}, Aside("a cache", 10.0, rounds=5), seconds)
    row = bench.judged(contest)
    assert (row["ratio"], row["padding"], row["arithmetic"], row["reached"]) == (0.375, 0.5, 0.75, True)
    assert row["note"] == "; 0.62 with a cache"
    missed = bench.judged(Contest("x", 0.3, "work", {}, None, seconds))
    assert not missed["reached"]
    assert "**Not reached**: x" in bench.page([missed], bench.machine(), "setup.")


def test_a_race_times_every_piece_of_every_way():
    calls: list[str] = []
    ways = {
        name: [lambda n=name: calls.append(n)] * count for name, count in (("textbook", 2), ("expunge", 1))
    }
    contest = Contest("x", 1.0, "work", ways)
    bench.race(contest, repeats=3)
    assert {way: len(seconds) for way, seconds in contest.seconds.items()} == {"textbook": 3, "expunge": 3}
    assert (calls.count("textbook"), calls.count("expunge")) == (1 + 6, 1 + 3)
