"""Release, rollback, lineage and requests without files, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from expunge.subjects.subject import load_subject
from made_runs import made_model, made_run
from tiny_world import command, listing, recipe, rows, write_recipe, write_rows


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Two audited runs in a chain, made without running."""
    monkeypatch.chdir(tmp_path)
    made_model(Path("original"), 0)
    made_run(Path("runs/a"), Path("original"), 1)
    made_run(Path("runs/b"), Path("runs/a/control/model"), 2)
    return tmp_path


def test_release_and_rollback_say_what_is_in_use(runs):
    said = command("release", "runs/a", "--to", "live")
    assert (said.code, said.err) == (0, "")
    mark = load_subject("runs/a/control/model").fingerprint()
    assert f"released runs/a: live/current is now {mark}" in said.out
    assert "which still knows the forget set" in said.out
    said = command("rollback", "live")
    assert (said.code, said.err) == (0, "")
    assert f"live/current is {load_subject('original').fingerprint()} again" in said.out


def test_a_refused_release_is_exit_3_and_a_reason_goes_on_record(runs):
    made_run(Path("runs/c"), Path("original"), 3, bar_met=False)
    said = command("release", "runs/c", "--to", "live")
    assert said.code == 3
    assert "its bar is missed" in said.err
    assert "--force REASON" in said.err
    assert command("release", "runs/c", "--to", "live", "--force", "court order").code == 0
    assert json.loads(Path("live/deployment.json").read_text())["releases"][0]["forced"] == "court order"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["release", "runs/none", "--to", "live"], "is no run folder"),
        (["release", "runs/a"], "names no deployment folder"),
        (["release", "runs/a", "--to", "original"], "is no deployment folder"),
        (["release", "runs/a", "--to", "original/config.json"], "is no deployment folder"),
        (["rollback", "runs/a"], "only a released one becomes rolled back"),
        (["rollback", "original"], "is no run folder"),
        (["rollback", "nowhere"], "is no run folder"),
        (["init"], "needs a forget file, or --from-model ENTITY"),
        (["init", "x.jsonl", "--from-model", "Ada"], "one of the two"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_and_nothing_written(runs, said, why):
    before = listing(runs)
    answer = command(*said)
    assert answer.code == 2
    assert answer.err.count("error:") == 1
    assert why in answer.err
    assert listing(runs) == before


def test_list_runs_shows_states_and_the_lineage_of_each_model(runs):
    command("release", "runs/a", "--to", "live")
    shown = {row["name"]: row for row in json.loads(command("list", "runs", "--json").out)}
    assert {name: row["state"] for name, row in shown.items()} == {"a": "released", "b": "audited"}
    marks = [
        load_subject(p).fingerprint() for p in ("original", "runs/a/control/model", "runs/b/control/model")
    ]
    assert shown["b"]["lineage"] == [
        {"fingerprint": marks[0], "by": ""},
        {"fingerprint": marks[1], "by": "a"},
        {"fingerprint": marks[2], "by": "b"},
    ]
    assert shown["a"]["lineage"] == shown["b"]["lineage"][:2]
    flat = " ".join(command("list", "runs").out.split())
    assert all(mark[:8] in flat for mark in marks)
    assert "released" in flat


def test_a_chain_is_found_by_name_where_fingerprints_say_nothing(runs):
    """A model that its control mixed back all the way has the fingerprint of its original."""
    for name, after in (("c", None), ("d", "runs/c")):
        made_run(Path("runs") / name, Path("original"), 0)
        file = Path("runs", name, "run.json")
        state = json.loads(file.read_text())
        state["life"][1]["after"] = after
        file.write_text(json.dumps(state))
    shown = {row["name"]: row for row in json.loads(command("list", "runs", "--json").out)}
    assert [step["by"] for step in shown["d"]["lineage"]] == ["", "c", "d"]
    assert [step["by"] for step in shown["c"]["lineage"]] == ["", "c"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"after": "runs/x"}, "stands beside after"),
        ({"after": {"run": "runs/x", "reference": "first"}, "model": None}, "rolling"),
        ({"after": {"reference": "fixed"}}, "names no run"),
        ({"after": "runs/one", "model": None}, "is the run that this one is to follow"),
        ({"after": "runs/none", "model": None}, "is no run folder"),
        ({"requests": ["a.jsonl"]}, "stands beside requests"),
        ({"requests": [], "forget": None}, "is empty"),
        ({"requests": [{"retain": "a.jsonl"}], "forget": None}, "required"),
        ({"requests": ["forget.jsonl", "none.jsonl"], "forget": None}, "no such file"),
        ({"forget": {"from_model": ""}}, "at least 1 character"),
        ({"forget": {"from_model": "Ada", "questions": ["Who?"]}}, "needs {entity}"),
        ({"forget": {"from_model": "Ada"}, "retain": "none.jsonl"}, "no such file"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_recipes_that_do_not_hold_are_refused(world, keys, why):
    before = listing(world)
    write_recipe(world / "r.yaml", **{"audit": [], **keys})
    said = command("run", "r.yaml")
    (world / "r.yaml").unlink()
    assert said.code == 2, said.err
    assert why in said.err
    assert listing(world) == before


def test_init_from_a_name_writes_a_recipe_that_plans(world):
    said = command("init", "--from-model", "Ada Lund: 1", "--model", "original", "-o", "named.yaml")
    assert said.code == 0, said.err
    made = yaml.safe_load(Path("named.yaml").read_text(encoding="utf-8"))
    assert made["forget"] == {"from_model": "Ada Lund: 1"}
    assert made["retain"] == "auto"
    assert made["target"]["kind"] == "entity"
    said = command("plan", "named.yaml")
    assert said.code == 0, said.err
    assert "built from the model" in said.err


@pytest.mark.slow
def test_a_stream_runs_prints_its_table_and_is_shown_again(world):
    for person in ("Ada", "Bo"):
        write_rows(Path(f"{person}.jsonl"), [row for row in rows("forget") if row["entity"] == person])
    more = {"requests": ["Ada.jsonl", "Bo.jsonl"], "forget": None, "holdout": None, "oracle": None}
    Path("s.yaml").write_text(yaml.safe_dump(recipe(**more, audit=[], max_new_tokens=8, output="runs/s")))
    said = command("run", "s.yaml")
    assert said.code == 0, said.err
    assert "request 2 of 2: runs/s/002" in said.err
    assert "earlier" in said.out
    assert command("show", "runs/s").out == said.out
    assert len(json.loads(command("show", "runs/s", "--json").out)["rows"]) == 2
    shown = {row["name"]: row for row in json.loads(command("list", "runs", "--json").out)}
    assert [step["by"] for step in shown["s/002"]["lineage"]] == ["", "s/001", "s/002"]
