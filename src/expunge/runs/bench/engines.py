"""Who runs the cells: a pool of processes here, or Ray. An engine takes tasks and yields each as it ends."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from expunge.errors import ConfigError, Problem, nearest

__all__ = ["ATTEMPT", "Engine", "Outcome", "Pool", "Task", "end_with_parent", "make_engine", "perform"]

ENGINES = ("pool", "ray")
BEGIN = "=== attempt"
STOPPED = (-signal.SIGTERM, -signal.SIGINT)
"""Someone ended the process on purpose: it is not begun again."""

ATTEMPT, PARENT = "EXPUNGE_ATTEMPT", "EXPUNGE_PARENT"


@dataclass(frozen=True)
class Task:
    """A module of Python run in a process of its own, in `folder`; what it says goes to `log`.

    It must be idempotent: after a crash it is run again, `retries` times at most, and it may be run again
    after it has succeeded. `result`: the file that it leaves.
    """

    name: str
    module: str
    args: tuple[str, ...]
    folder: str
    log: str
    result: str
    retries: int = 1
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a task ended: `text` is what stands in its result; without one, `reason` says why."""

    name: str
    attempts: int
    text: str | None
    reason: str = ""


class Engine(Protocol):
    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run every task, some at a time; yield each outcome when it is there."""
        ...


def make_engine(name: str, jobs: int | None, *, threads: int = 1, gpus: float = 0) -> Engine:
    """`jobs`: tasks at a time; `threads`, `gpus`: what one of them needs."""
    if name == "pool":
        return Pool(jobs or 1)
    if name == "ray":
        from expunge.runs.bench.ray_engine import Ray

        return Ray(jobs, threads, gpus)
    raise ConfigError(Problem("--engine", f"unknown engine {name!r}", nearest(name, ENGINES)))


def perform(task: Task) -> Outcome:
    """Run one task to its end, here; again where its process broke down."""
    log, code = Path(task.folder, task.log), 1
    log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(1 + task.retries):
        count = attempts(log) + 1
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{BEGIN} {count}\n")
            file.flush()
            code = _process(replace(task, env={**task.env, ATTEMPT: str(count)}), file.fileno())
        if code in (0, *STOPPED):
            break
    result = Path(task.folder, task.result)
    if code == 0 and result.is_file():
        return Outcome(task.name, attempts(log), result.read_text(encoding="utf-8"))
    return Outcome(task.name, attempts(log), None, _reason(code, log))


def _process(task: Task, out: int) -> int:
    env = {**os.environ, **task.env, PARENT: str(os.getpid())}
    command = [sys.executable, "-m", task.module, *task.args]
    process = subprocess.Popen(
        command, cwd=task.folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
    )
    _live.add(process)
    try:
        return process.wait()
    finally:
        _live.discard(process)


_live: set[subprocess.Popen[bytes]] = set()
"""The processes of tasks that are running now."""


def attempts(log: Path) -> int:
    """How often the task of this log was begun, those included that were killed."""
    if not log.is_file():
        return 0
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(line.startswith(BEGIN) for line in lines)


def _reason(code: int, log: Path) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines and not lines[-1].startswith(BEGIN) else "it said nothing"
    return f"exit code {code}: {said}"


def end_with_parent() -> None:
    """Called by a task: when the bench that began it is killed, it ends too, and the next one goes on."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Pool:
    """Processes on this machine, `jobs` at a time; where there are GPUs, each task sees one of them."""

    def __init__(self, jobs: int, devices: Sequence[str] | None = None):
        self.jobs = jobs
        self.devices = _gpus() if devices is None else devices

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in range(self.jobs):
            seen = self.devices[slot % len(self.devices)] if self.devices else None
            slots.put({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen})

        def work(task: Task) -> Outcome:
            env = slots.get()
            try:
                return perform(replace(task, env={**env, **task.env}))
            finally:
                slots.put(env)

        pool = ThreadPoolExecutor(self.jobs)
        futures = [pool.submit(work, replace(task)) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # Ctrl-C, or who asked has had enough: leave no process behind
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(_live):
                process.terminate()
            raise
        pool.shutdown()


def _gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
