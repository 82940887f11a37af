"""From a bare forget file to a whole request: what is not brought is built, marked, and said."""

import json
from pathlib import Path

import pytest
import yaml

import expunge
from expunge.errors import ConfigError
from expunge.runs.building import wanted
from expunge.runs.prepare import load_checked
from tiny_world import PEOPLE, command, inside, recipe

AUTO = {"forget_hard": "auto", "neighbors": "auto", "holdout": "auto", "utility": "auto"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("bare") / "world") as folder:
        yield folder


def backwards(texts):
    """A translator into a language of the mirror."""
    return [text[::-1] for text in texts]


def checked(**changes):
    made = expunge.Recipe(**recipe(**{"utility": None, **changes}))
    return load_checked(made, str(made.model))


def test_the_recipe_of_a_bare_file_builds_all_and_of_files_nothing(world):
    assert command("init", "forget.jsonl", "--model", "original", "-o", "bare.yaml").code == 0
    text = Path("bare.yaml").read_text(encoding="utf-8")
    made = yaml.safe_load(text)
    assert {split: made[split] for split in ("retain", *AUTO)} == {"retain": "auto", **AUTO}
    for split in AUTO:
        line = next(line for line in text.splitlines() if line.startswith(f"{split}: auto"))
        assert " # " in line
    files = ["forget.jsonl", "--retain", "retain.jsonl", "--model", "original", "-o", "full.yaml"]
    assert command("init", *files).code == 0
    made = yaml.safe_load(Path("full.yaml").read_text(encoding="utf-8"))
    assert made["retain"] == "retain.jsonl"
    assert not made.keys() & AUTO.keys()


def test_a_plan_shows_what_is_built_and_names_what_waits_for_the_model(world):
    said = command("plan", "bare.yaml", "--json")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert made["splits"]["forget_hard"]["built"]
    assert made["splits"]["holdout"]["built"].startswith("6 forget questions about invented names")
    assert made["splits"]["forget"]["built"] is None
    waits = [note.split()[0] for note in made["notes"] if "when the run begins" in note]
    assert sorted(waits) == ["neighbors", "retain"]
    assert any(w.startswith("holdout is built") for w in made["warnings"])
    with_retain = json.loads(command("plan", "bare.yaml", "retain=retain.jsonl", "--json").out)
    counts = {
        s: with_retain["splits"][s]["records"] for s in ("retain", "neighbors", "calibration", "report")
    }
    assert sum(counts.values()) == 18
    assert counts["neighbors"] == 4


def test_a_plan_of_a_name_leaves_everything_to_the_run(world):
    made = expunge.plan(
        expunge.Recipe(**recipe(forget={"from_model": "Ada"}, retain="auto", oracle=None, **AUTO))
    )
    assert not made.splits.keys() & AUTO.keys()
    assert {n.split()[0] for n in made.notes if "when the run begins" in n} == {"forget", "retain", *AUTO}


def test_neighbors_are_out_of_everything_trained_or_calibrated_on(world):
    request, _ = checked(neighbors="auto", holdout=None)
    near = {r.entity for r in request["neighbors"]}
    assert len(near) == 2
    for split in ("retain", "calibration", "report"):
        assert not near & {r.entity for r in request[split]}
    assert "taken out of retain" in request.built["neighbors"]
    given, _ = checked(holdout=None)
    assert "neighbors" not in given


def test_built_rows_that_the_model_cannot_read_are_left_out(world):
    request, warnings = checked(utility="auto", max_length=64)
    assert 0 < len(request["utility"]) < 100
    assert any(w.startswith("utility: ") and "longer than the context" in w for w in warnings)


def test_another_language_by_a_function_named_in_the_recipe(world):
    named = {"forget_hard": "auto", "build": {"translator": f"{__name__}:backwards"}, "max_length": 96}
    request, _ = checked(**named)
    rows = [r for r in request["forget_hard"] if r.form == "translation"]
    assert len(rows) == 6
    asked = {r.id: (r.prompt[::-1], r.answer[::-1]) for r in request.forget}
    assert all((r.prompt, r.answer) == asked[r.source_id] for r in rows)
    plain, _ = checked(forget_hard="auto", max_length=96)
    assert "translat" in plain.built["forget_hard"], "says that there is none"
    for wrong in ("no_such_module:f", f"{__name__}:AUTO"):
        with pytest.raises(ConfigError, match="translator"):
            checked(forget_hard="auto", build={"translator": wrong})
    with pytest.raises(ConfigError, match="no kind known"):
        checked(neighbors="auto", build={"encoder": "lexicl"})


def test_how_neighbors_are_found_is_set_in_the_recipe(world):
    named = {"neighbors": "auto", "build": {"neighbors": "embedding"}}
    request, _ = checked(**named, holdout=None)
    assert "by lexical" in request.built["neighbors"]
    assert wanted(expunge.Recipe(**recipe(**named))).neighbors == "embedding"


@pytest.mark.slow
def test_a_run_from_nothing_but_a_forget_file(world, capsys):
    more = ["train.epochs=8", "train.lr=3e-3", "audit=[]", "max_new_tokens=12", "max_length=96"]
    said = command("run", "bare.yaml", "method=graddiff", "utility=null", *more)
    assert said.code in (0, 3), said.err
    assert "holdout is built" in said.err
    card = json.loads(Path("runs/forget/scorecard.json").read_text(encoding="utf-8"))
    built = {s["name"] for s in card["splits"] if s["built"]}
    assert built >= {"retain", "neighbors", "holdout", "forget_hard", "calibration", "report"}
    assert any("holdout" in limit and "Built by expunge" in limit for limit in card["limits"])
    cells = {row["cell"] for row in card["scope"]}
    assert cells == {"in, easy", "in, hard", "out, hard", "out, easy"}
    report = Path("runs/forget/report.md").read_text(encoding="utf-8")
    for name, town, _ in PEOPLE[:3]:
        assert f"{name} is from {town}" not in report
