"""The ledger of requests: `ledger.jsonl` beside the runs, one entry a transition, each chained to the last.

An entry holds the hash of the one before it, so an edit, a deletion or another order anywhere but at the end
breaks the chain; a cut tail is found against the head that a run's certificate keeps. No text stands in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.runs.folder import now

__all__ = ["FILE", "START", "check_chain", "entries", "ledger_of", "record"]

FILE = "ledger.jsonl"
START = "0" * 64
"""What the first entry follows."""


def ledger_of(run: Path) -> Path:
    """The ledger that a run stands in: one for each folder of runs."""
    return Path(run).absolute().parent / FILE


def record(run: Path, state: str, **facts: Any) -> str:
    """Append a transition of a run; its hash. The same again is no entry, so a resumed run adds none."""
    run = Path(run)
    with _locked(ledger_of(run)) as file:
        found = _parsed(_whole_lines(file))
        same = [e for e in found if (e["run"], e["state"]) == (run.name, state)]
        told = json.loads(json.dumps(facts, default=str))
        if same and same[-1]["facts"] == told:
            return str(same[-1]["hash"])
        before = found[-1]["hash"] if found else START
        entry = {"previous": before, "at": now(), "run": run.name, "state": state, "facts": told}
        entry["hash"] = _hash(entry)
        os.write(file, (json.dumps(entry, sort_keys=True) + "\n").encode())
        os.fsync(file)
        return str(entry["hash"])


def entries(path: Path) -> list[dict[str, Any]]:
    """Every entry that can be read; `check_chain` names those that cannot."""
    return _parsed(path.read_bytes().splitlines()) if path.is_file() else []


def check_chain(path: Path) -> list[str]:
    """What is wrong with a ledger, a line for each break; empty where the chain holds."""
    found, before = [], START
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), start=1):
        parsed = _parsed([line])
        if not parsed:
            found.append(f"{path} line {number}: cannot be read")
            continue
        entry = parsed[0]
        if entry["previous"] != before:
            found.append(f"{path} line {number}: follows {entry['previous']}, expected {before}")
        if (now_is := _hash(entry)) != entry["hash"]:
            found.append(f"{path} line {number}: expected hash {entry['hash']}, found {now_is}")
        before = entry["hash"]
    return found


def _hash(entry: Mapping[str, Any]) -> str:
    told = {name: value for name, value in entry.items() if name != "hash"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"previous", "run", "state", "facts", "hash"} <= entry.keys():
            found.append(entry)
    return found


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _whole_lines(file: int) -> list[bytes]:
    """The lines there are; a half-written last one, of a killed process, is taken away."""
    data = os.pread(file, os.fstat(file).st_size, 0)
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.ftruncate(file, len(whole))
    return whole.splitlines()
