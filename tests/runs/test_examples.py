"""The example recipes, run on the files that their generator makes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import expunge
from tiny_world import command

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
KINDS = {
    "item": "records",
    "feature": "attribute",
    "class": "entity",
    "task": "capability",
    "stream": "entity",
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder in which the generator has run."""
    spec = importlib.util.spec_from_file_location("examples", RECIPES / "examples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        patch.delenv("EXPUNGE_CACHE", raising=False)
        yield module.make()


@pytest.mark.parametrize("name", KINDS)
def test_an_example_runs_and_forgets(examples, name):
    file = RECIPES / f"{name}.yaml"
    assert command("plan", file).code == 0
    said = command("run", file, "audit=[prefill]", "train.epochs=12")
    assert said.code == 0, said.err
    if name == "stream":
        rows = json.loads(Path("runs/stream/stream.json").read_text())["rows"]
        assert [len(row["past"]) for row in rows] == [0, 1, 2]
        assert all(row["forget_controlled"] < row["forget_original"] for row in rows)
    card = expunge.Scorecard.read(Path("runs", name, "002" if name == "stream" else "", "scorecard.json"))
    assert card.target["kind"] == KINDS[name]
    known, left = (card.score("extraction_strength", "forget", m).value for m in ("original", "unlearned"))
    assert known > 0.8
    assert left < 0.5 * known
    report = card.score("extraction_strength", "calibration", "controlled")
    assert report.details["kept"] >= card.verdict.tau
