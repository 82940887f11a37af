"""Making a benchmark's models: original and oracle side by side, one process each, kept under one folder.

A process is told its job on stdin, as one line of JSON, and tells its progress on stdout, one JSON object a
line. Its stdin stays open while the parent lives; when it closes, the process ends. So no process outlives
its run, nothing is pickled, and a script without a `__main__` guard works.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from torch import Tensor

import expunge.errors
from expunge.data.records import Record
from expunge.errors import ExpungeError, InputError, ModelError, Problem
from expunge.measure import EvidencePlan, take_evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute
from expunge.progress import say, track
from expunge.subjects import load_subject, save_subject
from expunge.subjects.subject import Subject, quiet
from expunge.training.finetune import FinetuneTask, finetune
from expunge.training.hooks import TrainingControl
from expunge.training.settings import TrainSettings

__all__ = ["CODE_VERSION", "Goal", "Job", "Memorized", "fingerprint_source", "num_parameters", "train_models"]

CODE_VERSION = 1
"""Rises when the same job would give another model."""

LARGE = 20_000_000
"""Parameters from which more than one thread per process pays."""

GRACE = 10.0
"""Seconds a process has to save its state after Ctrl-C."""


@dataclass(frozen=True)
class Goal:
    """How well the watched records must be known: mean extraction strength, mean answer probability.

    Measured after epoch `first` and then after every `every` epochs.
    """

    strength: float
    probability: float = 0.0
    first: int = 1
    every: int = 1


@dataclass(frozen=True)
class Job:
    """One model: `base` fine-tuned on `records` until `watched` are known; `measured` is scored last."""

    name: str
    base: str
    records: tuple[Record, ...]
    settings: TrainSettings
    watched: tuple[Record, ...]
    goal: Goal
    measured: Mapping[str, tuple[Record, ...]]
    device: str = "cpu"


_JOB = TypeAdapter(Job)


class Memorized(TrainingControl):
    """Stops a training at the first measured epoch that meets the goal; `curve` holds what was measured."""

    def __init__(
        self,
        watched: Sequence[Record],
        goal: Goal,
        steps_per_epoch: int,
        tell: Callable[[str], None] = lambda _: None,
    ):
        self.watched, self.goal, self.steps_per_epoch, self.tell = watched, goal, steps_per_epoch, tell
        self.curve: list[dict[str, float]] = []
        self.met = False
        self._earlier = 0.0  # seconds trained before a resume
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._began

    def after_step(self, step: int, subject: Subject) -> bool:
        epoch, rest = divmod(step, self.steps_per_epoch)
        if rest or epoch < self.goal.first or (epoch - self.goal.first) % self.goal.every:
            return False
        strength, probability = self.measure(subject)
        self.curve.append({"epoch": epoch, "extraction_strength": strength, "probability": probability})
        self.tell(f"epoch {epoch}: extraction strength {strength:.2f}, probability {probability:.2f}")
        self.met = strength >= self.goal.strength and probability >= self.goal.probability
        return self.met

    def measure(self, subject: Subject) -> tuple[float, float]:
        """Mean extraction strength and probability of the watched records."""
        evidence = {"watched": score_sheet(subject, make_sheet(subject.encoder, self.watched, "watched"))}
        found = (compute(name, evidence, "watched").value for name in ("extraction_strength", "probability"))
        strength, probability = (value or 0.0 for value in found)
        return strength, probability

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"curve": self.curve, "seconds": self.seconds}, {}

    def load_state(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.curve, self._earlier = list(plain["curve"]), plain["seconds"]


def train_models(
    folder: Path, make_jobs: Callable[[Path], Sequence[Job]], what: str
) -> dict[str, dict[str, Any]]:
    """The facts of each model under `folder`/<job name>, trained first where the folder does not exist.

    `make_jobs` is given a folder of its own for starting weights. Everything is made in a hidden folder
    beside the target, which gets its name when all is there; a run that was killed goes on from its last
    checkpoint. Facts: steps, tokens, wall (seconds), epochs, met, curve, reached {split: {metric: value}}.
    """
    facts = folder / "facts.json"
    if not facts.is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, what):
            if not facts.is_file():
                _train(folder, make_jobs, what)
    return json.loads(facts.read_text(encoding="utf-8"))


def _train(folder: Path, make_jobs: Callable[[Path], Sequence[Job]], what: str) -> None:
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(exist_ok=True)
    jobs = make_jobs(work / "base")
    waiting = [job for job in jobs if not (work / job.name).exists()]
    say(f"{what}: training {' and '.join(job.name for job in waiting)}, once; kept in {folder}")
    accelerator = torch.cuda.is_available() and any(job.device != "cpu" for job in waiting)
    for group in [[job] for job in waiting] if accelerator else [waiting]:
        _run(group, work, what)
    found = {job.name: _made(work / job.name) for job in jobs}
    for job in jobs:
        if not found[job.name]["met"]:
            say(f"warning: {what}: {job.name} missed its goal ({job.goal}), see curve in {folder}/facts.json")
    (work / "facts.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for part in work.iterdir():
        if part.is_dir() and part.name not in found:
            shutil.rmtree(part)
        elif part.suffix == ".log":
            part.unlink()
    shutil.rmtree(folder, ignore_errors=True)  # one without facts: somebody else's leftovers
    os.replace(work, folder)


def _made(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expunge.json").read_text(encoding="utf-8"))["made"]


@contextlib.contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """Two runs that need the same models: one trains, the other waits."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{what}: another run is training these models, waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def num_parameters(source: str) -> int:
    """How large the model is; only its configuration is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"), quiet():
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    except Exception as error:  # a missing folder, no network, an unknown architecture, …
        fix = "Give a folder with config.json, or a hub id"
        raise ModelError(Problem(source, f"cannot be loaded ({type(error).__name__})", fix)) from error
    return sum(p.numel() for p in model.parameters())


def fingerprint_source(source: str) -> str:
    """A hash of a folder's model and tokenizer files; of a hub model, its id."""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(source).glob("*") if p.suffix in (".json", ".safetensors", ".model")):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if Path(source).is_dir() else source


# The parent's side -------------------------------------------------------------------------------------


def _run(jobs: Sequence[Job], work: Path, what: str) -> None:
    """Train these jobs at the same time; the first that fails, or Ctrl-C, ends them all."""
    events: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        for job in jobs:
            children[job.name] = _start(job.name, work, events)
        for job in jobs:
            _give(job, children[job.name])
        _watch(jobs, events, children, work, what)
    except KeyboardInterrupt:
        for child in children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # once: it saves its state
        _wait(children.values(), GRACE)
        raise
    finally:
        for child in children.values():
            child.kill()
        _wait(children.values(), None)
        for child in children.values():
            assert child.stdin
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()


def _start(name: str, work: Path, events: queue.Queue[Any]) -> subprocess.Popen[str]:
    with (work / f"{name}.log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "expunge.benchmarks.training", str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C reaches the parent only
        )

    def listen() -> None:
        assert child.stdout
        with child.stdout as lines, contextlib.suppress(ValueError):  # a line cut off by a kill
            for line in lines:
                events.put((name, json.loads(line)))
        events.put((name, None))

    threading.Thread(target=listen, daemon=True).start()
    return child


def _give(job: Job, child: subprocess.Popen[str]) -> None:
    assert child.stdin
    with contextlib.suppress(BrokenPipeError):  # it died at once: its end is read from its output
        child.stdin.write(_JOB.dump_json(job).decode() + "\n")
        child.stdin.flush()


def _watch(
    jobs: Sequence[Job], events: queue.Queue[Any], children: Mapping[str, Any], work: Path, what: str
) -> None:
    steps = {job.name: 0 for job in jobs}
    total = sum(job.settings.num_steps(len(job.records)) for job in jobs)
    running = set(steps)
    with track(what, total) as advance:
        while running:
            name, event = events.get()
            if event is None:
                running.remove(name)
                if children[name].wait() or not (work / name).exists():
                    why = _last_line(work / f"{name}.log")
                    raise ExpungeError(f"{what}: training the {name} failed: {why}")
            elif "error" in event:
                kind = getattr(expunge.errors, event["kind"], ExpungeError)
                raise kind(f"{what}: training the {name} failed: {event['error']}")
            elif "said" in event:
                say(f"{name}: {event['said']}")
            else:
                advance(event["step"] - steps[name])
                steps[name] = event["step"]


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it ended without a word; killed, perhaps for memory"


def _wait(children: Iterable[subprocess.Popen[str]], seconds: float | None) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    with contextlib.suppress(subprocess.TimeoutExpired):
        for child in children:
            child.wait(None if end is None else max(0.0, end - time.monotonic()))


# The child's side --------------------------------------------------------------------------------------


class _Teller(TrainingControl):
    """Tells the step, a few times a second."""

    def __init__(self, tell: Callable[..., None]):
        self.tell, self.last = tell, 0.0

    def after_step(self, step: int, subject: Subject) -> bool:
        if time.monotonic() - self.last > 0.3:
            self.tell(step=step)
            self.last = time.monotonic()
        return False


def _train_one(job: Job, work: Path, tell: Callable[..., None]) -> None:
    torch.set_num_threads(1)
    subject = load_subject(job.base, device=job.device)
    if subject.num_parameters() > LARGE:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    epoch = FinetuneTask(subject, job.records, job.settings).steps_per_epoch
    goal = Memorized(job.watched, job.goal, epoch, lambda text: tell(said=text))
    result = finetune(
        subject,
        job.records,
        job.settings,
        folder=work / f"{job.name}-run",
        controls=[goal, _Teller(tell)],
        name=job.name,
    )
    if result.status == "diverged":
        raise ExpungeError(f"{result.notes[-1]}. Lower the learning rate ({job.settings.lr:g})")
    made = {
        "steps": result.steps,
        "tokens": result.tokens,
        "wall": round(goal.seconds, 1),
        "epochs": round(result.steps / epoch, 2),
        "met": goal.met,
        "curve": goal.curve,
        "reached": _reached(subject, job.measured),
    }
    save_subject(subject, work / job.name, info={"benchmark": job.name, "made": made})


def _reached(subject: Subject, splits: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float | None]]:
    evidence = take_evidence(subject, splits, plan=EvidencePlan(variants=("gold",), generate=False))
    names = ("extraction_strength", "probability")
    return {split: {name: compute(name, evidence, split).value for name in names} for split in evidence}


def _main() -> None:
    work = Path(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed goes to the log

    def tell(**event: Any) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    job = _JOB.validate_json(sys.stdin.readline())

    def follow_parent() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        _train_one(job, work, tell)
    except ExpungeError as error:
        kind = type(error).__name__ if isinstance(error, InputError) else "ExpungeError"
        tell(error=str(error), kind=kind)
        sys.exit(1)


if __name__ == "__main__":
    _main()
