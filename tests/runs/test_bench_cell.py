"""One real cell on the tiny world: all bars over one training, its numbers those of the scorecards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.audit.scorecard import Scorecard
from expunge.benchmarks import BENCHMARKS, Benchmark, Prepared
from expunge.controls import NoBar
from expunge.data import load_request
from expunge.reports.leaderboard_schema import Cell
from expunge.runs.api import run
from expunge.runs.bench.cell import compute
from expunge.runs.bench.grid import cells, read_grid
from tiny_world import TRAIN, recipe

pytestmark = pytest.mark.slow

NAME = "tiny_files"


class TinyFiles(Benchmark):
    """The tiny world as a benchmark."""

    @classmethod
    def from_part(cls, part, **options):
        return cls(**options)

    def request(self):
        files = {split: f"{split}.jsonl" for split in ("forget", "retain", "holdout")}
        return load_request(files, bar=True)[0]

    def prepare(self, cache):
        cost = {"oracle": {"wall": 10.0, "tokens": 1000, "steps": 10}}
        return Prepared(self.request(), Path("original"), Path("oracle"), train=TRAIN, cost=cost)


@pytest.fixture(scope="module")
def cell(world) -> Cell:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BENCHMARKS, "_live", dict(BENCHMARKS._live))
        patch.setattr(BENCHMARKS, "_live_cards", dict(BENCHMARKS._live_cards))
        BENCHMARKS.register(NAME, parts=["all"], oracle="exact")(TinyFiles)
        more = ["audit=quantize", "max_new_tokens=24", "max_length=96", "graddiff.retain_weight=2"]
        grid = read_grid(NAME, more, methods="graddiff", seeds=2, taus="0.9,0.6")
        return compute(cells(grid)[1], Path("results"))


def card(tau: float) -> Scorecard:
    return Scorecard.read(Path(f"results/runs/all--graddiff--1--{tau:g}/scorecard.json"))


def stages(tau: float) -> dict[str, dict]:
    return json.loads(Path(f"results/runs/all--graddiff--1--{tau:g}/run.json").read_text())["stages"]


def test_it_is_written_and_finished(cell):
    assert (cell.status, cell.reason) == ("ok", "")
    assert Cell.read(Path("results/cells/all--graddiff--1.json")) == cell
    assert [row.tau for row in cell.controlled] == [0.9, 0.6]
    assert cell.settings["retain_weight"] == 2.0
    assert cell.settings["train"]["lr"] == TRAIN["lr"]
    assert "seed" not in cell.settings["train"]


def test_every_bar_stands_over_one_training(cell):
    strict, loose = stages(0.9), stages(0.6)
    shared = [n for n in strict if n == "unlearn" or n.startswith("baseline") or n == "measure/unlearned"]
    assert len(shared) == 4
    assert all(strict[name]["key"] == loose[name]["key"] and loose[name]["cached"] for name in shared)
    assert strict["control"]["key"] != loose["control"]["key"]
    assert len([p for p in Path("results/runs/.cache").glob("unlearn-*") if p.is_dir()]) == 1


def test_its_numbers_are_those_of_the_scorecards(cell):
    for tau in (0.9, 0.6):
        row, told = cell.at(tau), card(tau)
        assert row is not None
        score = told.score("extraction_strength", "forget", "controlled")
        assert score is not None
        assert (row.forget.value, row.forget.low, row.forget.high) == (score.value, score.low, score.high)
        assert (row.alpha, row.verdict) == (told.control[0].alpha, told.verdict.word)
        assert row.met is True
        assert row.worst_attack is not None
        assert row.worst_attack.recovery == told.verdict.worst_recovery
        assert told.verdict.tau == tau
    loose = card(0.9).score("extraction_strength", "forget", "unlearned")
    assert cell.uncontrolled is not None
    assert loose is not None
    assert cell.uncontrolled.forget.value == loose.value
    assert cell.original_fingerprint == card(0.9).models["original"]["fingerprint"]
    assert cell.cost.ratio_to_retraining == pytest.approx(cell.cost.wall / 10.0)
    assert cell.controlled[0].retain_paraphrased.reason == "no rewordings"


def test_its_curve_runs_from_the_original_to_what_the_method_returned(cell):
    first, last = cell.curve[0], cell.curve[-1]
    assert (first.alpha, last.alpha) == (0.0, 1.0)
    assert first.forget == pytest.approx(cell.original.forget.value)
    assert last.forget == pytest.approx(cell.uncontrolled.forget.value)
    assert {row.alpha for row in cell.controlled} <= {point.alpha for point in cell.curve}


def test_a_control_that_reads_the_bar_trains_under_each(world):
    """early_stop does, ball does not: only then is the training another one."""

    def trained(tau: float, control: list[str], name: str) -> str:
        made = recipe(
            bar={"keep": tau}, control=[*control, "uwc"], output=f"runs/{name}-{tau}", train={"steps": 1}
        )
        run(made, only="unlearn")
        return str(json.loads(Path(f"runs/{name}-{tau}/run.json").read_text())["stages"]["unlearn"]["key"])

    assert trained(0.9, ["ball"], "ball") == trained(0.6, ["ball"], "ball")
    assert trained(0.9, ["early_stop"], "stop") != trained(0.6, ["early_stop"], "stop")


def test_a_control_that_hides_that_it_reads_the_bar_is_found_out():
    with pytest.raises(AssertionError, match="reads_bar"):
        _ = NoBar().value
