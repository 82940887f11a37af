"""`expunge study`: metrics before and after attacks, over the models of several runs."""

from __future__ import annotations

import json

import pytest

from expunge.runs.studying import _ranking
from tiny_world import SECRETS, command, inside, listing, write_recipe


def row(metric, pearson, kind="surface", slope=1.0):
    return {"metric": metric, "pearson": pearson, "kind": kind, "slope": slope}


def test_ranking_is_by_the_least_correlation_whole_metrics_first():
    rows = [
        row("a", 0.9), row("a", 0.8), row("b", 0.99), row("b", 0.7), row("c", 0.95), row("c", None),
    ]  # fmt: skip
    ranking = _ranking(rows, ["a", "b", "c"])
    assert [r["metric"] for r in ranking] == ["a", "b", "c"]
    assert [r["worst"] for r in ranking] == [0.8, 0.7, 0.95]
    assert [r["missing"] for r in ranking] == [0, 0, 1]
    assert ranking[0]["mean"] == pytest.approx(0.85)


def test_slope_counts_for_attacks_that_change_no_weights():
    rows = [row("a", 0.9, slope=0.5), row("a", 0.9, "knowledge", slope=9.0)]
    assert _ranking(rows, ["a"])[0]["slope_error"] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("study") / "w") as folder:
        for method in ("graddiff", "ga"):
            recipe = write_recipe(folder / f"{method}.yaml", method=method, audit=[], output=f"runs/{method}")
            assert command("run", recipe).code == 0
        yield folder


STUDY = ("--metrics", "extraction_strength,probability", "--attacks", "prefill,quantize", "-o", "runs/study")


@pytest.mark.slow
def test_study_of_two_runs(world):
    said = command("study", "runs/graddiff", "runs/ga", *STUDY)
    assert said.code == 0, said.err
    data = json.loads((world / "runs/study/study.json").read_text(encoding="utf-8"))
    cells = {(r["attack"], r["side"], r["metric"]) for r in data["rows"]}
    assert len(cells) == len(data["rows"]) == 2 * 2 * 2  # attacks × sides × metrics: sides are never pooled
    labels = [m["label"] for m in data["models"]]
    assert labels[0] == "original"
    assert len(set(labels)) == len(labels) >= 4
    rounded = [p for p in data["points"] if p["attack"] == "quantize" and p["model"] == "original"]
    assert all(0 <= p["before"] <= 1 and 0 <= p["after"] <= 1 for p in rounded)
    by = {(p["model"], p["side"], p["metric"], p["attack"]): p for p in data["points"]}
    for attack in ("prefill", "quantize"):  # before is before, whatever the attack
        at = by["original", "forget", "probability", attack]
        assert at["before"] == by["original", "forget", "probability", "prefill"]["before"] > 0.5
    page = (world / "runs/study/study.html").read_text(encoding="utf-8")
    assert "Which metric to trust" in page
    assert not any(secret in page for secret in SECRETS)


@pytest.mark.slow
def test_a_finished_cell_is_not_computed_again(world):
    command("study", "runs/graddiff", "runs/ga", *STUDY)
    before = listing(world / "runs/study/cells")
    said = command("study", "runs/graddiff", "runs/ga", *STUDY)
    assert said.code == 0
    assert listing(world / "runs/study/cells") == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs/nothing"], "is no run folder"),
        (["runs/graddiff", "--metrics", "extraction_strenght"], "extraction_strength"),
        (["runs/graddiff", "--attacks", "quantise"], "quantize"),
    ],
)
def test_bad_input_is_named(world, arguments, says):
    said = command("study", *arguments, "-o", "runs/bad")
    assert said.code == 2
    assert says in said.err
    assert not (world / "runs/bad").exists()
