"""`expunge bench`: the grid and its keys, resume, failures in sight, numbers by hand. Cells are stubs."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import ConfigError
from expunge.runs.bench.bench import BenchResult, bench, report
from expunge.runs.bench.engines import Pool, Task
from expunge.runs.bench.grid import Grid, Spec, cells, profile_of, read_grid
from tiny_world import command, listing

STUB = "stub_cell"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("EXPUNGE_KEY", "a key for tests")


def grid(*overrides: str, methods: str = "ga,npo", seeds: int = 2, taus: str = "0.9,0.6") -> Grid:
    return read_grid("personas/tiny", overrides, methods=methods, seeds=seeds, taus=taus)


def benched(*overrides: str, **more: Any) -> BenchResult:
    return bench(grid(*overrides), Path("results"), jobs=2, worker=STUB, **more)


def begun(folder: Path = Path("results")) -> list[tuple[str, int, int]]:
    """(cell, its process, that one's parent) of every process that was begun."""
    file = folder / "begun.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [(name, int(own), int(parent)) for name, _, own, parent in map(str.split, lines)]


def until(what: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


# The grid ---------------------------------------------------------------------------------------------


def test_a_cell_for_every_method_and_seed():
    assert [spec.name for spec in cells(grid())] == [
        "tiny--ga--0", "tiny--npo--0", "tiny--ga--1", "tiny--npo--1",
    ]  # fmt: skip


def test_a_key_hashes_what_decides_the_cell_and_nothing_else():
    def keys(*overrides: str, **more: Any) -> dict[str, str]:
        return {spec.name: spec.key for spec in cells(grid(*overrides, **more))}

    plain = keys()
    assert len(set(plain.values())) == 4
    assert keys("show_text=true") == plain
    assert all(keys("train.lr=1e-5")[name] != key for name, key in plain.items())
    assert all(keys(taus="0.9,0.5")[name] != key for name, key in plain.items())
    assert all(keys("benchmark.seed=1")[name] != key for name, key in plain.items()), "other records"
    own = keys("npo.beta=0.3")
    assert {name for name, key in plain.items() if own[name] != key} == {"tiny--npo--0", "tiny--npo--1"}


def test_a_method_may_have_settings_of_its_own():
    found = cells(grid("train.lr=1e-4", "npo.beta=0.3", "npo.train.lr=2e-4", seeds=1))
    ga, npo = (spec.recipe(0.9) for spec in found)
    assert (ga.train.lr, npo.train.lr, npo.method.settings) == (1e-4, 2e-4, {"beta": 0.3})
    assert (npo.bar.keep, npo.train.seed, npo.profile) == (0.9, 0, "quick")


def test_seeds_differ_in_the_training_alone():
    first, second = (spec.recipe(0.9) for spec in cells(grid(methods="npo")))
    same = {"name", "train"}
    assert first.model_dump(exclude=same) == second.model_dump(exclude=same)
    assert (first.train.seed, second.train.seed) == (0, 1)


def test_a_file_says_the_same():
    Path("bench.yaml").write_text(
        "benchmark: personas\nsplits: tiny\nmethods: [ga, npo]\nseeds: 2\ntau: [0.9, 0.6]\n"
        "train: {lr: 1e-4}\nnpo: {beta: 0.3, train: {lr: 2e-4}}\n"
    )
    told = [s.key for s in cells(read_grid("bench.yaml"))]
    assert told == [s.key for s in cells(grid("train.lr=1e-4", "npo.beta=0.3", "npo.train.lr=2e-4"))]
    assert len(cells(read_grid("bench.yaml", seeds=1))) == 2, "options stand above the file"


def test_lists_of_attacks_are_told_apart():
    audits = (
        "quick",
        "none",
        "quantize",
        "[quantize, rtt]",
        "[{rtt: {steps: [5]}}]",
        "[{rtt: {steps: [9]}}]",
    )
    told = {profile_of(cells(grid(f"audit={audit}"))[0].recipe(0.9)) for audit in audits}
    assert len(told) == len(audits)
    assert told >= {"quick", "no attack", "quantize", "quantize, rtt"}


def test_what_a_process_is_told_is_what_was_checked():
    spec = cells(grid("npo.beta=0.3"))[1]
    assert Spec.loaded(spec.dumped()) == spec


@pytest.mark.parametrize(
    ("args", "problems"),
    [
        (
            ["persona", "--methods", "gaa,npo,npo", "--tau", "2,x", "--seeds", "0"],
            ["unknown benchmark 'persona'. Did you mean personas", "unknown method 'gaa'. Did you mean ga",
             "npo stands there twice", "'2' is no share", "'x' is no share", "Give a number of seeds"],
        ),
        (["personas"], ["--methods: names none"]),
        (
            ["personas", "--splits", "tiny,hugee", "--methods", "ga,npo", "train.lx=1", "npo.bet=2"],
            ["'hugee' is unknown", "unknown key", "'bet'"],
        ),
        (
            ["personas", "--methods", "ga", "seed=1", "bar.keep=0.5", "npo.beta=1", "tune.trials=2",
             "ga.train.seed=3"],
            ["seed: is what the grid says. Say it by --seeds", "Say it by --tau", "add npo to --methods",
             "Remove tune", "ga.train.seed: is what"],
        ),
        (["personas/tiny", "--methods", "ga", "control=early_stop"], ["Add uwc"]),
        (["personas/tiny", "--methods", "ga", "--engine", "rey"], ["unknown engine 'rey'. Did you mean ray"]),
        (["personas/tiny", "--methods", "ga", "--jobs", "0"], ["--jobs"]),
        (["tofu", "--splits", "forget01", "--methods", "ga", "benchmark.folder=nowhere"], ["nowhere"]),
        (["--report", "nowhere"], ["nowhere: holds no cells and no bench.json"]),
    ],
)  # fmt: skip
def test_bad_input_is_said_at_once_and_nothing_is_written(args, problems):
    said = command("bench", *args)
    assert said.code == 2, said.err
    assert [problem for problem in problems if problem not in said.err] == []
    assert "Traceback" not in said.err
    assert listing(Path()) == {}


def test_a_folder_with_something_else_is_left_alone():
    Path("results").mkdir()
    Path("results/thesis.tex").touch()
    with pytest.raises(ConfigError, match="something else"):
        benched()
    assert set(listing(Path("results"))) == {"thesis.tex"}


# What it leaves ---------------------------------------------------------------------------------------


def test_mean_and_deviation_by_hand():
    result = benched()
    rows = {(r["method"], r["row"], r["tau"]): r for r in result.data["boards"][0]["rows"]}
    npo = rows["npo", "controlled", 0.6]
    assert npo["forget"]["mean"] == pytest.approx((0.20 + 0.21) / 2)
    assert npo["forget"]["sd"] == pytest.approx(0.01 / 2**0.5)
    assert (npo["n"], npo["alpha"]["mean"], npo["retain"]["mean"]) == (2, pytest.approx(0.4), 0.6)
    assert rows["ga", "uncontrolled", None]["forget"]["mean"] == 0.0
    with open("results/table.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert {row["forget_mean"] for row in table if row["method"] == "npo" and row["tau"]} == {
        str(npo["forget"]["mean"])
    }
    left = {path.name for path in Path("results").iterdir()}
    assert {"bench.json", "cells", "logs", "index.html", "leaderboard.md", "leaderboard.json"} <= left
    asked = json.loads(Path("results/bench.json").read_text())
    assert asked["command"] == "expunge bench personas --splits tiny --methods ga,npo --seeds 2 --tau 0.9,0.6"


def test_finished_cells_are_not_computed_again():
    benched()
    before = listing(Path("results/cells"))
    benched()
    assert listing(Path("results/cells")) == before
    assert len(begun()) == 4
    bench(grid(seeds=3), Path("results"), jobs=2, worker=STUB)
    after = listing(Path("results/cells"))
    assert {name: after[name] for name in before} == before
    assert sorted(name for name, *_ in begun()[4:]) == ["tiny--ga--2", "tiny--npo--2"]


def test_other_settings_and_a_damaged_file_are_computed_again(capsys):
    benched()
    Path("results/cells/tiny--ga--1.json").write_text("{")
    benched("npo.beta=0.3")
    assert sorted(name for name, *_ in begun()[4:]) == ["tiny--ga--1", "tiny--npo--0", "tiny--npo--1"]
    assert "tiny--npo--0: settings, records or code have changed" in capsys.readouterr().err


def test_a_cell_that_crashed_runs_again(monkeypatch):
    monkeypatch.setenv("STUB_TROUBLE", "npo dies once")
    result = benched()
    assert {(c.method, c.seed, c.status, c.attempts) for c in result.cells} == {
        ("ga", 0, "ok", 1), ("ga", 1, "ok", 1), ("npo", 0, "ok", 2), ("npo", 1, "ok", 2),
    }  # fmt: skip


def test_a_failed_cell_is_shown_and_in_no_mean(monkeypatch, capsys):
    monkeypatch.setenv("STUB_TROUBLE", "npo fails")
    result = benched(retries=0)
    assert [cell.name for cell in result.failed] == ["tiny--npo--0", "tiny--npo--1"]
    board = result.data["boards"][0]
    assert board["counts"] == {"finished": 2, "failed": 2, "missing": 0, "apart": 0}
    assert [f["reason"] for f in board["failed"]] == [
        f"exit code 1: RuntimeError: out of luck (see logs/tiny--npo--{seed}.log)" for seed in (0, 1)
    ]
    held = next(r for r in board["rows"] if r["method"] == "npo" and r["row"] == "controlled")
    assert (held["n"], held["forget"]) == (0, None)
    capsys.readouterr()
    assert "out of luck" in command("bench", "--report", "results").out
    assert "out of luck" in Path("results/leaderboard.md").read_text(encoding="utf-8")
    monkeypatch.delenv("STUB_TROUBLE")
    again = benched()
    assert not again.failed
    assert sorted(name for name, *_ in begun()[4:]) == ["tiny--npo--0", "tiny--npo--1"]


def test_cells_of_others_join_and_strange_ones_stand_apart():
    benched()
    other = Path("other/cells")
    other.mkdir(parents=True)
    cell = json.loads(Path("results/cells/tiny--npo--0.json").read_text())
    for name, more in (
        ("mine", {"settings": {"beta": 9}}),
        ("odd", {"original_fingerprint": "b", "seed": 7}),
    ):
        (other / f"{name}.json").write_text(json.dumps({**cell, **more}))
    data = report([Path("results"), Path("other")], Path("all")).data["boards"][0]
    assert {row["method"] for row in data["rows"]} >= {"npo", "npo (beta 9)"}
    assert data["apart"] == [{"method": "npo", "seed": 7, "reason": "another original model (b, not a)"}]
    assert Path("all/index.html").is_file()


# Engines ----------------------------------------------------------------------------------------------


def test_each_job_sees_a_device_of_its_own():
    code = "import os; open(os.environ['CUDA_VISIBLE_DEVICES'], 'w').close()"
    Path("see.py").write_text(f"import time\n{code}\ntime.sleep(0.5)\n")
    tasks = [Task(str(i), "see", (), str(Path.cwd()), f"{i}.log", "see.py") for i in range(2)]
    assert all(outcome.text for outcome in Pool(2, ["3", "5"]).run(tasks))
    assert Path("3").is_file()
    assert Path("5").is_file()


def test_who_leaves_the_pool_leaves_no_process_behind(monkeypatch):
    monkeypatch.setenv("STUB_TROUBLE", "npo waits")
    spec = json.dumps({"part": "tiny", "method": "npo", "seed": 0, "taus": [0.9]})
    spec = json.dumps({**json.loads(spec), "benchmark": "personas", "key": ""})
    Path("results").mkdir()
    waiting = Task("waits", STUB, (spec, "results"), str(Path.cwd()), "waits.log", "results")
    quick = Task("quick", "this", (), str(Path.cwd()), "quick.log", "results")
    outcomes = Pool(2, []).run([waiting, quick])
    until(begun) if next(outcomes).name == "quick" else None
    outcomes.close()
    until(lambda: not _lives(begun()[0][1]))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_bench_goes_on_where_it_was(monkeypatch):
    monkeypatch.setenv("STUB_TROUBLE", "npo waits")
    killed = multiprocessing.get_context("fork").Process(target=benched)
    killed.start()
    until(lambda: any("npo" in name for name, *_ in begun()))
    until(lambda: Path("results/cells/tiny--ga--0.json").is_file())
    assert killed.pid
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    until(lambda: not any(_lives(process) for _, process, _ in begun()))
    finished = listing(Path("results/cells"))
    Path("results/go").touch()
    result = benched()
    assert [cell.status for cell in result.cells] == ["ok"] * 4
    names = [name for name, *_ in begun()]
    assert all(names.count(name.removesuffix(".json")) == 1 for name in finished)
    assert listing(Path("results/cells")).items() >= finished.items()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    said = command("bench", "personas/tiny", "--methods", "ga", "--engine", "ray")
    assert said.code == 2
    assert "pip install 'expunge[ray]'" in said.err


@pytest.mark.slow
def test_a_killed_ray_worker_loses_nothing(monkeypatch):
    """Cells that wait in a worker are run again in another one; finished ones are left alone."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("STUB_TROUBLE", "npo waits")
    seen: dict[str, Any] = {}

    def kill() -> None:
        until(lambda: any("npo" in name for name, *_ in begun()))
        until(lambda: Path("results/cells/tiny--ga--0.json").is_file())
        seen["finished"] = listing(Path("results/cells"))
        seen["lost"], _, worker = next(entry for entry in begun() if "npo" in entry[0])
        os.kill(worker, signal.SIGKILL)
        until(lambda: [name for name, *_ in begun()].count(seen["lost"]) == 2)
        Path("results/go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    result = benched(engine="ray")
    killer.join()
    assert [cell.status for cell in result.cells] == ["ok"] * 4
    names = [name for name, *_ in begun()]
    assert all(names.count(name.removesuffix(".json")) == 1 for name in seen["finished"])
    assert listing(Path("results/cells")).items() >= seen["finished"].items()
