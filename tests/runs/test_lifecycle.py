"""The life of a request, and releases that can be taken back bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest

from expunge.errors import BarMissed, ConfigError, ModelError
from expunge.runs.deployment import Deployment, file_hashes
from expunge.runs.lifecycle import STATES, advance, current
from expunge.runs.purge import purge
from expunge.runs.release import release, rollback
from expunge.subjects.subject import load_subject
from made_runs import made_model, made_run
from tiny_world import listing


def life(*states: str) -> list[dict[str, str]]:
    return [{"state": state, "at": "then"} for state in states]


def state_of(run: Path) -> str:
    return current(json.loads((run / "run.json").read_text())["life"])


def in_use(place: Path) -> dict[str, str]:
    """Hashes of the files of the model in use."""
    return file_hashes((place / "current").resolve())


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An original, two runs in a chain, and the name of a deployment folder."""
    monkeypatch.chdir(tmp_path)
    made_model(Path("original"), 0)
    made_run(Path("runs/a"), Path("original"), 1)
    made_run(Path("runs/b"), Path("runs/a/control/model"), 2)
    return Path("live")


# States ----------------------------------------------------------------------------------------------


def test_a_life_goes_from_deployed_to_rolled_back():
    made: list = []
    for state in STATES:
        made = advance(made, state, "now", run="r", mark=state)
    assert [e["state"] for e in made] == list(STATES)
    assert all(e["at"] == "now" and e["mark"] == e["state"] for e in made)


@pytest.mark.parametrize(
    ("path", "then", "way"),
    [
        ((), "requested", "Run its recipe"),
        (("deployed",), "unlearned", "Run its recipe to the end"),
        (("deployed", "requested", "unlearned"), "released", "its audit is missing"),
        (STATES[:4], "rolled back", "First: expunge release"),
        (STATES[:5], "released", "expunge rollback"),
        (STATES[:5], "unlearned", "expunge rollback"),
        (STATES, "released", "another output"),
        (STATES, "requested", "another output"),
    ],
)
def test_an_illegal_step_is_one_error_that_says_what_can_be_done(path, then, way):
    with pytest.raises(ConfigError, match=way) as caught:
        advance(life(*path), then, "now", run="runs/x", mark="new")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].where == "runs/x"


def test_the_same_again_is_no_step_and_something_else_is_one():
    once = advance(advance([], "deployed", "1", run="r", mark="a"), "requested", "2", run="r", mark="b")
    assert advance(once, "deployed", "3", run="r", mark="a") == once
    other = advance(once, "deployed", "3", run="r", mark="other")
    assert [e["state"] for e in other] == ["deployed", "requested", "deployed"]
    assert current(advance(other, "requested", "4", run="r", mark="b")) == "requested", "entered once more"


# Releasing --------------------------------------------------------------------------------------------


def test_a_release_puts_the_model_in_use_and_keeps_the_one_before(place):
    release(Path("runs/a"), place)
    assert in_use(place) == file_hashes(Path("runs/a/control/model"))
    deployed = Deployment(place)
    assert deployed.current == load_subject(place / "current").fingerprint()
    before = load_subject("original").fingerprint()
    assert deployed.top["previous"] == before
    assert file_hashes(deployed.model(before)) == file_hashes(Path("original"))
    assert state_of(Path("runs/a")) == "released"
    told = json.loads(Path("runs/a/run.json").read_text())["life"][-1]
    assert told["deployment"] == os.path.join("..", "..", "live")
    assert told["controlled"] == deployed.current
    assert told["at"]


def test_it_is_released_where_the_recipe_says(place):
    Path("runs/a/recipe.json").write_text(json.dumps({"deploy": "elsewhere"}))
    release(Path("runs/a"))
    assert Path("elsewhere/current").is_symlink()
    with pytest.raises(ConfigError, match="names no deployment folder"):
        release(Path("runs/b"))


def test_the_same_release_again_changes_nothing(place):
    release(Path("runs/a"), place)
    before = Path("live/deployment.json").read_bytes(), Path("runs/a/run.json").read_bytes()
    assert "is in use" in release(Path("runs/a"), place)[0]
    assert (Path("live/deployment.json").read_bytes(), Path("runs/a/run.json").read_bytes()) == before
    with pytest.raises(ConfigError, match="is released"):
        release(Path("runs/a"), "another")
    assert not Path("another").exists()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"bar_met": False}, "its bar is missed"),
        ({"bar_met": None}, "no bar was held"),
        ({"verdict": "collapsed"}, "its verdict is collapsed"),
        ({"verdict": "not unlearned"}, "its verdict is not unlearned"),
        ({"missed": ["the worst recovery is 0.9"]}, "the worst recovery is 0.9"),
        ({"attacks": []}, "no attack was measured"),
    ],
)
def test_what_the_audit_speaks_against_is_refused_unless_a_reason_is_given(place, found, why):
    made_run(Path("runs/c"), Path("original"), 3, **found)
    before = listing(Path())
    with pytest.raises(BarMissed, match=why):
        release(Path("runs/c"), place)
    with pytest.raises(ConfigError, match="needs a reason"):
        release(Path("runs/c"), place, force=" ")
    assert listing(Path()) == before
    release(Path("runs/c"), place, force="signed off by the board")
    assert Deployment(place).top["forced"] == "signed off by the board"
    assert json.loads(Path("runs/c/run.json").read_text())["life"][-1]["forced"] == "signed off by the board"


@pytest.mark.parametrize("state", ["requested", "unlearned"])
def test_a_run_that_is_not_audited_is_refused_even_with_force(place, state):
    made_run(Path("runs/c"), Path("original"), 3, state=state)
    with pytest.raises(ConfigError, match=f"is {state}, and only an audited one"):
        release(Path("runs/c"), place, force="I insist")
    assert not place.exists()


def test_a_run_that_would_bring_back_what_another_forgot_is_refused(place):
    made_run(Path("runs/c"), Path("original"), 3)
    release(Path("runs/a"), place)
    with pytest.raises(ConfigError, match="what runs/a forgot would come back"):
        release(Path("runs/c"), place)
    assert in_use(place) == file_hashes(Path("runs/a/control/model"))
    release(Path("runs/b"), place)  # it started from runs/a
    assert in_use(place) == file_hashes(Path("runs/b/control/model"))


def test_a_model_that_was_changed_after_its_audit_is_not_released(place):
    made_model(Path("runs/a/control/model"), 9)
    with pytest.raises(ModelError, match="was noted"):
        release(Path("runs/a"), place)
    assert not place.exists(), "nothing is left behind"
    assert state_of(Path("runs/a")) == "audited"


@pytest.mark.parametrize("held", ["thesis.tex", "models/mine/weights", ".git/config"])
def test_a_folder_of_something_else_is_no_deployment(place, held):
    (place / held).parent.mkdir(parents=True)
    (place / held).write_text("precious")
    before = listing(Path())
    with pytest.raises(ConfigError, match="is no deployment folder"):
        release(Path("runs/a"), place)
    assert listing(Path()) == before


def test_damaged_notes_are_said(place):
    Path("damaged").mkdir()
    Path("damaged/deployment.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        release(Path("runs/a"), "damaged")


# Rolling back -----------------------------------------------------------------------------------------


def test_a_rollback_restores_every_bit_step_by_step(place):
    first = file_hashes(Path("original"))
    release(Path("runs/a"), place)
    second = in_use(place)
    release(Path("runs/b"), place)
    rollback(place)
    assert in_use(place) == second
    assert (state_of(Path("runs/a")), state_of(Path("runs/b"))) == ("released", "rolled back")
    rollback(Path("runs/a"))
    assert in_use(place) == first
    assert load_subject(place / "current").fingerprint() == load_subject("original").fingerprint()
    assert state_of(Path("runs/a")) == "rolled back"
    with pytest.raises(ConfigError, match="nothing to go back to"):
        rollback(place)
    with pytest.raises(ConfigError, match="only an audited one becomes released"):
        release(Path("runs/a"), place)


def test_only_the_last_release_is_rolled_back(place):
    release(Path("runs/a"), place)
    release(Path("runs/b"), place)
    with pytest.raises(ConfigError, match="runs/b was released after it"):
        rollback(Path("runs/a"))
    assert in_use(place) == file_hashes(Path("runs/b/control/model"))


def test_a_rollback_survives_the_loss_of_the_run_and_of_the_original(place):
    first = file_hashes(Path("original"))
    release(Path("runs/a"), place)
    for folder in ("original", "runs"):
        os.rename(folder, f"{folder}-gone")
    rollback(place)
    assert in_use(place) == first


def test_a_damaged_predecessor_is_never_put_into_use(place):
    release(Path("runs/a"), place)
    kept = Deployment(place).model(Deployment(place).top["previous"]) / "model.safetensors"
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"is not as it was kept \(model.safetensors\)"):
        rollback(place)
    assert in_use(place) == file_hashes(Path("runs/a/control/model"))
    assert state_of(Path("runs/a")) == "released"


class Crash(Exception):
    pass


def crashing(after: int):
    """`os.replace`, by which everything becomes visible, fails from its n-th call on."""
    plain, calls = os.replace, []

    def replace(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise Crash
        return plain(*args, **kwargs)

    return patch.object(os, "replace", replace), calls


def test_a_killed_first_release_is_made_good_by_the_next(place):
    broken, _ = crashing(3)
    with broken, patch("expunge.runs.deployment._tidy"), pytest.raises(Crash):
        release(Path("runs/a"), place)
    assert list((place / "models").iterdir()), "it got as far as a model"
    release(Path("runs/a"), place)
    assert in_use(place) == file_hashes(Path("runs/a/control/model"))
    assert len(list((place / "models").iterdir())) == 2


@pytest.mark.parametrize("verb", ["release", "rollback"])
def test_a_crash_at_any_moment_loses_nothing(place, verb):
    release(Path("runs/a"), place)
    act = (lambda: release(Path("runs/b"), place)) if verb == "release" else (lambda: rollback(place))
    before = in_use(place)
    now = {p: file_hashes(Path(p)) for p in ("original", "runs/b/control/model")}
    goal = now["runs/b/control/model" if verb == "release" else "original"]
    for after in range(20):
        broken, calls = crashing(after)
        with broken:
            with contextlib.suppress(Crash):
                act()
            finished = len(calls) <= after
        assert in_use(place) in (before, goal), "one whole model is in use at every moment"
        if finished:
            break
    assert after > 2, "there were moments to crash at"
    assert in_use(place) == goal
    assert (state_of(Path("runs/b" if verb == "release" else "runs/a"))) in ("released", "rolled back")
    assert (
        len([r for r in Deployment(place).note["releases"] if not r["rolled_back"]])
        == (verb == "release") * 2
    )
    assert not list(place.glob(".*.tmp"))


def test_purging_a_deployment_leaves_the_model_in_use_and_no_way_back(place):
    release(Path("runs/a"), place)
    said = purge(Path("runs/a"))
    assert any("live, which keeps earlier models for a rollback" in line for line in said)
    said = purge(place)
    assert any("no rollback to it any more" in line for line in said)
    assert [p.name for p in (place / "models").iterdir()] == [Deployment(place).current]
    with pytest.raises(ConfigError, match="the model before was purged"):
        rollback(place)
    release(Path("runs/b"), place)
    rollback(place)
    assert in_use(place) == file_hashes(Path("runs/a/control/model"))
