"""The run folder and its stages: a finished stage is never computed again, a killed one resumes.

A stage writes into `<cache>/<stage>-<key>.partial`; when it is done the folder loses that ending and is
linked into the run. The key is a hash of its inputs, its settings and the code it ran, so the same work in
another run is found there too. The cache stands beside the runs (`runs/.cache`), or where EXPUNGE_CACHE says.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import expunge
from expunge import ranks
from expunge.errors import ConfigError, Problem
from expunge.progress import say
from expunge.reports.files import write_text
from expunge.runs.lifecycle import State, advance, check_open
from expunge.runs.notes import read_json, read_state

__all__ = [
    "RunFolder", "Work", "announce", "cache_folder", "code_version", "hash_of", "kept_name", "now",
    "remove", "write_json",
]  # fmt: skip

Work = Callable[[Path], Mapping[str, Any] | None]
"""Fills the folder of a stage; returns what it cost: {tokens, flops, …}."""


def hash_of(value: Any) -> str:
    """A short hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def code_version(*rooms: str) -> str:
    """A hash of the source of these rooms: other code, other key."""
    root = Path(expunge.__file__).parent
    digest = hashlib.sha256()
    for room in rooms:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder(output: Path) -> Path:
    """Where finished stages and benchmark models are kept."""
    named = os.environ.get("EXPUNGE_CACHE")
    return Path(named) if named else Path(output).parent / ".cache"


def write_json(path: Path, value: Any) -> None:
    """Write atomically."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


class RunFolder:
    """One run on disk: `recipe.json`, `run.json` (what is done), a folder per stage, the reports."""

    def __init__(self, path: Path, recipe: Mapping[str, Any], *, new: bool = False):
        """Raises ConfigError when the folder holds a run of another recipe (unless `new`), or is no run."""
        self.path = Path(path)
        self.cache = cache_folder(self.path)
        self.recipe = json.loads(json.dumps(recipe, default=str))
        self.state: dict[str, Any] = {"created": now(), "stages": {}, "keys": {}, "life": []}
        self._replaced = False
        ranks.on_first(lambda: self._read(new))

    def _read(self, new: bool) -> None:
        path = self.path
        if not path.exists():
            return
        state = read_state(self.path)
        stored = read_json(self.path / "recipe.json")
        if state is None and not (self.path.is_dir() and _is_empty(self.path)):
            raise ConfigError(Problem(str(path), "exists and is no expunge run", "Choose another output"))
        changed = _difference(stored, self.recipe) if isinstance(stored, dict) else []
        damaged = state == {} or (stored is not None and not isinstance(stored, dict))
        if (changed or damaged) and not new:
            what = f"changed: {', '.join(changed[:5])}" if changed else "its notes are damaged"
            fix = "Choose another output, or replace it with --new"
            raise ConfigError(Problem(str(path), f"holds a run of another recipe ({what})", fix))
        self._replaced = bool(changed or damaged)
        if state and self._replaced:
            check_open(self.path, state.get("life", []), "it is not replaced")
        if state and self._replaced:
            self.state["keys"] = state.get("keys", {})  # what the cache still holds of the old run
        elif state:
            self.state |= state

    def begin(self) -> None:
        """Write the recipe; called once the recipe, its data and its models are known to be good."""
        ranks.on_first(self._begin)

    def _begin(self) -> None:
        try:
            if self._replaced:
                shutil.rmtree(self.path)
            write_json(self.path / "run.json", self.state)
            write_json(self.path / "recipe.json", self.recipe)
        except OSError as error:
            raise ConfigError(
                Problem(str(self.path), f"cannot be written ({error.strerror})", "Choose another output")
            ) from error

    def enter(self, state: State, **facts: Any) -> None:
        """Record a transition of the request's life; nothing is written where nothing is new."""
        if not ranks.is_first():
            return
        life = advance(self.state["life"], state, now(), run=self.path, **facts)
        if life != self.state["life"]:
            self.state["life"] = life
            write_json(self.path / "run.json", self.state)

    def stage(self, name: str, inputs: Mapping[str, Any], work: Work) -> Path:
        """The folder of a finished stage; `work(folder)` fills it, and may find there what a killed run left.

        What `work` returns is the stage's cost: {tokens, flops, …}.
        """
        linked, key = self.path / name, hash_of([name, dict(inputs)])
        with ExitStack() as held:  # by rank 0, while all do the work
            kept = ranks.on_first(lambda: self._missing(name, key, held))
            facts = _work(kept, work) if kept else None
            ranks.on_first(lambda: self._done(name, key, facts))
        return linked

    def _missing(self, name: str, key: str, held: ExitStack) -> Path | None:
        """Where the work of a stage goes, with a lock on it; None where it is done."""
        done = self.state["stages"].get(name)
        if done and done["key"] == key and (self.path / name).is_dir():
            return None
        check_open(self.path, self.state["life"], f"its stage {name} would be computed again")
        keys = self.state["keys"].setdefault(name, [])
        if key not in keys:  # noted before anything is written, so that `purge` finds what a kill leaves
            keys.append(key)
            write_json(self.path / "run.json", self.state)
        kept = self.cache / kept_name(name, key)
        held.enter_context(_locked(kept, name))
        return None if (kept / "stage.json").is_file() else kept

    def _done(self, name: str, key: str, facts: Mapping[str, Any] | None) -> None:
        """Link a stage into the run and note it; without `facts` it was there already."""
        linked, known = self.path / name, self.state["stages"].get(name)
        if facts is None and known and known["key"] == key and linked.is_dir():
            return
        kept = self.cache / kept_name(name, key)
        _link_tree(kept, linked)
        found = read_json(kept / "stage.json") if facts is None else facts
        self.state["stages"][name] = {"key": key, "cached": facts is None, **found}
        write_json(self.path / "run.json", self.state)


def kept_name(stage: str, key: str) -> str:
    """The name of a stage's folder in the cache."""
    return f"{stage.replace('/', '-')}-{key}"


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


@contextmanager
def _locked(kept: Path, name: str) -> Iterator[None]:
    """One process at a time computes a stage; the others wait and find it in the cache."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_name(f"{kept.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"{name}: another run computes the same; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _work(kept: Path, work: Work) -> dict[str, Any]:
    """Every rank works, the first one keeps what came of it."""
    partial = kept.with_name(f"{kept.name}.partial")
    ranks.on_first(lambda: partial.mkdir(exist_ok=True))
    began = time.monotonic()
    cost = dict(work(partial) or {})
    ranks.barrier()
    if not ranks.is_first():
        return cost
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    facts = {"wall": time.monotonic() - began, "peak_memory": peak, **cost}
    for leftover in partial.rglob(".*.tmp"):  # half-written files of a killed process
        remove(leftover)
    write_json(partial / "stage.json", facts)
    remove(kept)
    os.replace(partial, kept)
    return facts


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_tree(source: Path, target: Path) -> None:
    """Hard links where the file system allows it, else copies; the target appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of a killed process
        remove(leftover)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(source, temporary, copy_function=link)
    remove(target)
    os.replace(temporary, target)


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys of the recipe that differ; whether texts are shown, where it is deployed, and how many processes
    share the work changes no number beyond rounding."""
    ignored = ("show_text", "deploy", "strategy", "deepspeed")
    return sorted(k for k in {**stored, **now} if stored.get(k) != now.get(k) and k not in ignored)


def now() -> str:
    """The time, as it stands in every file: UTC, ISO 8601."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = time.gmtime(int(epoch)) if epoch else time.gmtime()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)


def announce(number: int, total: int, what: str) -> None:
    """The line that says which stage runs."""
    say(f"[{number}/{total}] {what}")
