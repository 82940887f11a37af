"""A run that is killed and resumed, ten times over, is the run that never was."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_world import write_recipe

pytestmark = pytest.mark.slow

STAGE = re.compile(r"^\[(\d)/8\]", re.M)


class Server:
    """Runs commands in forked children, one at a time."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "said.log"
        command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self._answer() == "ready"

    def start(self, *args: str, cache: str) -> int:
        """Start a command; its process id."""
        env = {
            "EXPUNGE_KEY": "k",
            "SOURCE_DATE_EPOCH": "1700000000",
            "EXPUNGE_CACHE": str(self.folder / cache),
        }
        order = {"args": args, "cwd": str(self.folder), "env": env, "log": str(self.log)}
        self.log.unlink(missing_ok=True)
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self._answer())

    def end(self) -> int:
        return int(self._answer())

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def wait_for(self, stage: int) -> None:
        """Until the command announces this stage."""
        self.wait_until(lambda: str(stage) in STAGE.findall(self.said()))

    def wait_until(self, reached: Callable[[], Any]) -> None:
        give_up = time.monotonic() + 120
        while not reached():
            assert time.monotonic() < give_up, self.said()
            time.sleep(0.01)

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=30)

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def server(world) -> Iterator[Server]:
    training = {"epochs": 40, "lr": 1e-3, "batch": 6, "warmup": 0.0, "checkpoint_seconds": 0.1}
    for name in ("straight", "killed", "stopped"):
        more = {"train": training, "bar": {"keep": 0.6}, "audit": ["quantize"]}
        write_recipe(world / f"{name}.yaml", name="a run", output=f"runs/{name}", **more)
    server = Server(world)
    yield server
    server.close()


@pytest.fixture(scope="module")
def straight(server) -> dict[int, float]:
    """An uninterrupted run; how long each of its stages took."""
    server.start("run", "straight.yaml", cache="cache-straight")
    began: dict[int, float] = {}
    for stage in range(1, 9):
        server.wait_for(stage)
        began[stage] = time.monotonic()
    assert server.end() == 0, server.said()
    began[9] = time.monotonic()
    return {stage: began[stage + 1] - began[stage] for stage in range(1, 9)}


def outcome(run: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Weights bit for bit, and the scorecard without what time it took and where it lies."""
    weights = {
        model: (run / model / "model" / "model.safetensors").read_bytes() for model in ("unlearn", "control")
    }
    card = json.loads((run / "scorecard.json").read_text(encoding="utf-8"))
    assert card["recipe"].pop("output") == str(run)
    assert 0 < card["control"][0]["alpha"] < 1
    costs = ("cost", "ratio_to_retraining", "ratio_of_flops")
    return weights, {k: v for k, v in card.items() if k not in costs}


def checkpoints(cache: str) -> list[Path]:
    """What a training under way has saved."""
    return list(Path(cache).glob("unlearn-*.partial/training/checkpoint/state.json"))


def test_killed_ten_times_and_resumed_it_is_the_same_run(server, straight, world):
    chance = random.Random(5)
    kills, hit, said, checkpointed = 0, set(), "", False
    for stage in (1, 2, 3, 3, 2, 4, 4, 5, 6, 7, 8, 3, 6, 8):
        process = server.start("run", "killed.yaml", cache="cache-killed")
        server.wait_for(stage)
        if stage == 3 and not checkpointed:
            server.wait_until(lambda: checkpoints("cache-killed"))
            checkpointed = True
        else:
            time.sleep(straight[stage] * chance.uniform(0.1, 0.8))
        os.kill(process, signal.SIGKILL)
        if server.end() == -signal.SIGKILL:
            kills, hit = kills + 1, hit | {STAGE.findall(server.said())[-1]}
        said += server.said()
        if kills == 10 and len(hit) >= 5:
            break
    assert kills >= 10
    assert len(hit) >= 5, "the moments lie in many stages"
    server.start("run", "killed.yaml", cache="cache-killed")
    assert server.end() == 0, server.said()
    assert "resumed at step" in said, "the training went on where it was"
    assert outcome(Path("runs/killed")) == outcome(Path("runs/straight"))
    left = [
        p
        for p in (world / "cache-killed").rglob("*")
        if p.suffix in (".tmp", ".partial") or p.name == "checkpoint"
    ]
    left += Path("runs/killed").rglob("*.tmp")
    assert not left, "a kill leaves nothing behind once the run is through"


def test_ctrl_c_stops_cleanly_and_the_run_goes_on(server, straight, world):
    process = server.start("run", "stopped.yaml", cache="cache-stopped")
    server.wait_for(3)
    server.wait_until(lambda: checkpoints("cache-stopped"))
    os.kill(process, signal.SIGINT)
    assert server.end() == 130
    assert "stopped; run the same command again to go on" in server.said()
    assert "Traceback" not in server.said()
    server.start("run", "stopped.yaml", cache="cache-stopped")
    assert server.end() == 0, server.said()
    assert outcome(Path("runs/stopped")) == outcome(Path("runs/straight"))


def test_two_runs_at_once_share_the_work(server, world):
    """The second waits for what the first computes, and finds it."""
    command = [sys.executable, "-m", "expunge", "run", "--only", "baseline"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EXPUNGE_CACHE": str(world / "cache-both")}
    both = []
    for name in ("first", "second"):
        file = write_recipe(world / f"{name}.yaml", output=f"runs/{name}")
        both.append(subprocess.Popen([*command, str(file)], cwd=world, env=env, stderr=subprocess.DEVNULL))
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    states = [json.loads((world / "runs" / name / "run.json").read_text()) for name in ("first", "second")]
    cached = [
        state["stages"][stage]["cached"]
        for state in states
        for stage in ("baseline/original", "baseline/oracle")
    ]
    assert sorted(cached) == [False, False, True, True]
