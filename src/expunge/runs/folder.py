"""The run folder and its stages: a finished stage is never computed again, a killed one resumes.

A stage writes into `<cache>/<stage>-<key>.partial`; when it is done the folder is renamed to `<cache>/<stage>-<key>`
and linked into the run. The key is a hash of its inputs, its settings and the code it ran, so the same work in
another run is found there too. The cache stands beside the runs (`runs/.cache`), or where EXPUNGE_CACHE says.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import expunge
from expunge.errors import ConfigError, Problem
from expunge.progress import say

__all__ = ["RunFolder", "cache_folder", "code_version", "hash_of", "write_json"]


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class RunFolder:
    """One run on disk: `recipe.json`, `run.json` (what is done), a folder per stage, the reports."""

    def __init__(self, path: Path, recipe: Mapping[str, Any], *, new: bool = False):
        """Raises ConfigError when the folder holds a run of another recipe (unless `new`)."""
        self.path = Path(path)
        self.cache = cache_folder(self.path)
        self.recipe = json.loads(json.dumps(recipe, default=str))
        stored = self._read("recipe.json")
        if stored is not None and stored != self.recipe:
            if not new:
                raise ConfigError(Problem(str(path), f"holds a run of another recipe ({_difference(stored, self.recipe)})",
                                          "Choose another output, or replace it with --new"))  # fmt: skip
            shutil.rmtree(self.path)
        elif stored is None and self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(Problem(str(path), "exists and is no expunge run", "Choose another output"))
        self.state: dict[str, Any] = self._read("run.json") or {"created": _now(), "stages": {}}

    def begin(self) -> None:
        """Write the recipe; called once the recipe and its data are known to be good."""
        write_json(self.path / "recipe.json", self.recipe)
        write_json(self.path / "run.json", self.state)

    def stage(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """The folder of a finished stage; `work(folder)` fills it (and may find there what a killed run left).

        What `work` returns is the stage's cost: {tokens, flops, …}.
        """
        key = hash_of([name, dict(inputs)])
        linked = self.path / name
        done = self.state["stages"].get(name)
        if done and done["key"] == key and linked.is_dir():
            return linked
        kept = self.cache / f"{name.replace('/', '-')}-{key}"
        cached = (kept / "stage.json").is_file()
        if cached:
            facts = json.loads((kept / "stage.json").read_text(encoding="utf-8"))
        else:
            facts = self._work(name, kept, work)
        _link_tree(kept, linked)
        self.state["stages"][name] = {"key": key, "cached": cached, **facts}
        write_json(self.path / "run.json", self.state)
        return linked

    def _work(self, name: str, kept: Path, work: Callable[[Path], Mapping[str, Any] | None]) -> dict[str, Any]:
        partial = kept.with_name(kept.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        cost = dict(work(partial) or {})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        facts = {"wall": time.monotonic() - began, "peak_memory": peak, **cost}
        write_json(partial / "stage.json", facts)
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(partial, kept)
        return facts

    def _read(self, name: str) -> Any:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(Problem(str(path), f"is damaged: {error}", "Start over with --new")) from error


def _link_tree(source: Path, target: Path) -> None:
    """Hard links where the file system allows it, copies elsewhere; the target appears whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(source, temporary, copy_function=link)
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [k for k in {**stored, **now} if stored.get(k) != now.get(k)]
    return "changed: " + ", ".join(sorted(keys)[:5])


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = time.gmtime(int(epoch)) if epoch else time.gmtime()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)


def announce(number: int, total: int, what: str) -> None:
    """The line that says which stage runs."""
    say(f"[{number}/{total}] {what}")
