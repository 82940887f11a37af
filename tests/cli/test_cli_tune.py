"""`expunge tune` on the tiny world: rank, resume, reproduce, and a winner that can be run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.data.near import normalized
from expunge.runs.apart import set_apart
from expunge.runs.prepare import prepare
from expunge.runs.reading import load_recipe
from expunge.runs.stages import read_splits
from tiny_world import SECRETS, Said, command, inside, listing, rows, write_recipe, write_rows

pytestmark = pytest.mark.slow

SPACE = {"train.lr": [1.5e-3, 5e-3], "graddiff.retain_weight": [2.0, 20.0], "npo.retain_weight": [2.0, 20.0]}
TUNE = {"methods": ["graddiff", "npo"], "trials": 3, "seeds": 2, "space": SPACE}
FOLDER = Path("runs/one-tune")


def write_world(name: str = "r.yaml", **changes: Any) -> Path:
    """A recipe to tune, and a forget file with two paraphrases of each question."""
    more = [
        {"paraphrased_questions": [row["question"].replace("?", f" {word}?") for word in ("today", "now")]}
        for row in rows("forget")
    ]
    write_rows(Path("forget.jsonl"), [row | extra for row, extra in zip(rows("forget"), more, strict=True)])
    return write_recipe(
        Path(name), **{"bar": {"metric": "probability", "keep": 0.6}, "tune": TUNE, **changes}
    )


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    """A finished search."""
    with inside(tmp_path_factory.mktemp("world")):
        yield command("tune", write_world())


@pytest.fixture(scope="module")
def data(said) -> dict[str, Any]:
    assert said.code == 0, said.err
    return json.loads((FOLDER / "tuning.json").read_text(encoding="utf-8"))


def table(folder: Path = FOLDER) -> list[dict[str, str]]:
    """trials.csv without what a clock says."""
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_search_equal_budget(data):
    names = [trial["name"] for trial in data["trials"]]
    assert sorted(names) == [f"{m}-00{i}" for m in ("graddiff", "npo") for i in range(3)]
    shared = [
        {t["number"]: t["params"][key] for t in data["trials"] if t["method"] == method}
        for method in ("graddiff", "npo") for key in ("train.lr", "train.epochs")
    ]  # fmt: skip
    assert shared[:2] == shared[2:], "one sampler seed: the random trials of all methods share their draws"


def test_trials_are_ranked_by_the_controlled_forget_score(data):
    sound = [t["score"] for t in data["trials"] if t["status"] == "ok"]
    assert len(sound) >= 2
    assert sound == sorted(sound)
    assert all(t["calibration"] >= 0.6 * data["bar"]["original"] for t in data["trials"])
    assert all(t["passes"] <= 7 for t in data["trials"])


def test_search_best_row_has_alpha(data):
    best = data["trials"][0]
    assert 0 < best["alpha"] <= 1
    assert best["bracket"][0] <= best["alpha"] <= best["bracket"][1]
    assert len(data["winner"]["seeds"]) == 2
    for again in data["winner"]["seeds"]:
        assert again["seed"] != best["seed"]
        assert again["bracket"][1] - again["bracket"][0] <= 1 / 128, "calibrated in full"


def test_the_winner_is_the_finalist_with_the_best_mean(data):
    means = {f["name"]: sum(s["score"] for s in f["seeds"]) / 2 for f in data["finalists"]}
    assert data["winner"]["name"] == min(means, key=means.__getitem__)
    assert data["winner"]["forget"] == pytest.approx(min(means.values()))
    ok = [t["name"] for t in data["trials"] if t["status"] == "ok"]
    assert set(means) == set(ok[:3])


def test_what_it_says(said, data):
    assert "Best: " in said.out
    assert data["winner"]["name"] in said.out
    assert "Next: expunge run runs/one-tune/best.yaml" in said.err
    assert "Pareto" in (FOLDER / "tuning.md").read_text(encoding="utf-8")
    written = "".join(p.read_text(encoding="utf-8") for p in FOLDER.glob("*.*") if p.suffix != ".parquet")
    assert not [secret for secret in SECRETS if secret in written + said.out + said.err]


def test_trials_leave_no_models(said):
    left = {
        p.name for p in Path("runs").rglob("*") if p.suffix == ".safetensors" or p.name.endswith(".partial")
    }
    assert not left


def test_the_journal_is_one_that_optuna_reads(data):
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(FOLDER / "optuna.journal"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name="npo", storage=storage)
    values = {t["number"]: t["score"] for t in data["trials"] if t["method"] == "npo"}
    assert [t.value for t in study.trials] == [values[i] for i in range(3)]


def test_search_selection_split_absent_from_report(data):
    plain, best = load_recipe(Path("r.yaml"), ["tune=null"]), load_recipe(FOLDER / "best.yaml")
    chosen = set_apart(prepare(plain, Path("runs/x")).request).selection
    request = prepare(best, Path("runs/x")).request
    kept = {normalized(p) for r in request.forget for p in (r.prompt, *r.paraphrased_prompts)}
    kept |= {normalized(r.prompt) for split in request for r in request[split]}
    assert len(chosen) == data["selection"]["records"] == 6
    assert not kept & {normalized(r.prompt) for r in chosen}
    assert command("run", FOLDER / "best.yaml", "--only", "measure").code == 0
    evidence = read_splits(Path("runs/one-best/measure/controlled"))
    assert {len(rows) for rows in evidence["forget"].of("paraphrased_prompt").values()} == {1}
    assert len(evidence["forget_hard"].gold) == 6


def test_the_best_recipe_gives_what_the_search_found(data):
    """The same training as the trial's, so that an α calibrated in full lies in its bracket or beside it."""
    recipe = yaml.safe_load((FOLDER / "best.yaml").read_text(encoding="utf-8"))
    winner = data["winner"]
    method = recipe["method"] if isinstance(recipe["method"], str) else recipe["method"]["name"]
    assert method == winner["method"]
    assert recipe["train"]["lr"] == winner["params"]["train.lr"]
    trial = next(t for t in data["trials"] if t["name"] == winner["name"])
    assert command("run", FOLDER / "best.yaml", "--only", "control").code == 0
    control = json.loads(Path("runs/one-best/control/control.json").read_text(encoding="utf-8"))
    assert control["alpha"] == pytest.approx(trial["alpha"], abs=1 / 32)


def test_a_finished_search_computes_nothing_again(said, data):
    before = listing(FOLDER / "trial") | listing(Path("runs/.cache"))
    again = command("tune", "r.yaml", "--json")
    assert again.code == 0
    assert json.loads(again.out) == data
    assert listing(FOLDER / "trial") | listing(Path("runs/.cache")) == before


def test_more_trials_go_on_where_it_ended(data):
    before = {name: time_ for name, time_ in listing(FOLDER / "trial").items() if name.endswith("trial.json")}
    assert command("tune", "r.yaml", "--trials", "4", "--seeds", "1").code == 0
    after = listing(FOLDER / "trial")
    assert {name: after[name] for name in before} == before
    assert sum(name.endswith("trial.json") for name in after) == 8
    assert command("tune", "r.yaml").code == 0


def test_show_prints_a_search(said, data):
    assert "Best: " in command("show", FOLDER).out
    assert json.loads(command("show", FOLDER, "--json").out)["winner"] == data["winner"]


def test_killed_and_resumed_it_is_the_same_table(data):
    """After kill -9, in a cache of its own: no finished trial is repeated, and the table is the same."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EXPUNGE_CACHE": str(Path("other-cache").absolute())}
    log = Path("killed.log")
    with log.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "expunge", "tune", "r.yaml", "output=runs/killed"],
            env=env, stderr=err, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        give_up = time.monotonic() + 200
        while not list(Path("other-cache").glob("trial-graddiff-001*.partial")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    trials = lambda: {p: p.stat().st_mtime_ns for p in Path("other-cache").glob("trial-*/trial.json")}  # noqa: E731
    done = trials()
    assert len(done) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", env["EXPUNGE_CACHE"])
        assert command("tune", "r.yaml", "output=runs/killed").code == 0
    assert {p: at for p, at in trials().items() if p in done} == done
    assert len(trials()) == 6
    assert table(Path("runs/killed")) == table()
    assert not list(Path("other-cache").glob("*.partial"))


def test_an_uncontrolled_wreck_never_wins(said):
    """Ascent without a retain term forgets all of it, and all else; under the bar little is left of that."""
    space = {
        "train.lr": 3e-3, "train.epochs": 8, "train.batch": 6,
        "graddiff.retain_weight": {"values": [0.0, 5.0]},
    }  # fmt: skip
    file = write_world(
        "wreck.yaml", output="runs/wreck", watch=False,
        tune={"methods": ["graddiff"], "trials": 4, "seeds": 1, "space": space},
    )  # fmt: skip
    assert command("tune", file).code == 0
    data = json.loads(Path("runs/wreck-tune/tuning.json").read_text(encoding="utf-8"))
    weights = {t["params"]["graddiff.retain_weight"]: t for t in data["trials"]}
    wreck, held = weights[0.0], weights[5.0]
    assert wreck["forget_uncontrolled"] < held["forget_uncontrolled"]
    assert held["score"] < wreck["score"]
    assert data["winner"]["params"]["graddiff.retain_weight"] == 5.0


def test_degenerate_trials_are_labeled(said):
    """No score for a training that blew up; the others are kept with theirs."""
    space = {"train.lr": {"values": [1e30, 1e-12]}, "train.epochs": 4, "train.batch": 6}
    file = write_world(
        "odd.yaml", output="runs/odd", method="ga", watch=False,
        train={"lr": 1e30, "warmup": 0.0, "batch": 6},
        tune={"trials": 3, "seeds": 1, "space": space},
    )  # fmt: skip
    out = command("tune", file)
    assert out.code == 0, out.err
    data = json.loads(Path("runs/odd-tune/tuning.json").read_text(encoding="utf-8"))
    status = {t["params"]["train.lr"]: (t["status"], t["score"]) for t in data["trials"]}
    assert status[1e30] == ("diverged", None)
    assert status[1e-12][0] == "no_effect"
    assert len(data["trials"]) == 2
    assert any("all 2 points" in text for text in data["warnings"])
    assert data["winner"] is None
    assert "no winner" in out.out
    assert not Path("runs/odd-tune/best.yaml").exists()


def test_a_purged_search_holds_no_answers(said):
    file = write_world(
        "gone.yaml", output="runs/gone", tune={"methods": ["graddiff"], "trials": 1, "seeds": 1}
    )
    assert command("tune", file).code == 0
    assert any(row["summary"] == "a search" for row in json.loads(command("list", "runs", "--json").out))
    assert list(Path("runs/gone-tune").rglob("*.parquet"))
    assert command("purge", "runs/gone-tune", "--yes").code == 0
    assert not list(Path("runs/gone-tune").rglob("*.parquet"))
    assert Path("runs/gone-tune/tuning.json").is_file()


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--methods", "nop"], "unknown method 'nop'"),
        (["--methods", "npo,npo"], "npo stands there twice"),
        (["--trials", "0"], "tune.trials"),
        (["tune.space={train.lx: 1}"], "no setting 'lx'"),
        (["tune.metric=probabilty"], "unknown metric"),
        (["tune.metric=rougeL_recall"], "needs more than likelihoods"),
        (["control=cap"], "Add uwc"),
        (["tune.trial=3"], "unknown key"),
    ],
)
def test_bad_input_is_one_message(said, args, problem):
    before = listing(Path("runs"))
    out = command("tune", "r.yaml", "output=runs/never", *args)
    assert out.code == 2
    assert out.out == ""
    assert problem in out.err
    assert out.err.count("error: ") == 1
    assert "Traceback" not in out.err
    if "metric" not in args[0]:
        assert listing(Path("runs")) == before


def test_without_optuna_it_says_what_to_install(said, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    out = command("tune", "r.yaml")
    assert out.code == 2
    assert "Run: pip install optuna" in out.err
