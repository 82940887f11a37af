"""Run folders as a finished run leaves them, without running: a model, its notes and its recorded life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.runs.folder import write_json
from expunge.subjects import Subject, save_subject
from expunge.testing import tiny_subject

GOOD = {"verdict": "not resolved", "profile": "default", "bar_met": True, "missed": [], "attacks": ["rtt"]}
"""What an audit says of a model that may be released."""


def made_model(folder: Path, seed: int) -> Subject:
    """A random tiny model on disk."""
    subject = tiny_subject(seed)
    save_subject(subject, folder)
    return subject


def made_run(path: Path, original: Path, seed: int, *, state: str = "audited", **audited: Any) -> str:
    """A run from `original` to a model of its own; returns the fingerprint. `audited`: what was found."""
    from expunge.subjects.subject import load_subject

    before, after = load_subject(original).fingerprint(), made_model(path / "control" / "model", seed)
    controlled = after.fingerprint()
    life: list[dict[str, Any]] = [
        {"state": "deployed", "model": str(original), "fingerprint": before, "dtype": "float32"},
        {"state": "requested", "forget": "f", "request": "r", "after": None},
        {"state": "unlearned", "unlearned": controlled, "controlled": controlled},
        {"state": "audited", "controlled": controlled, **GOOD, **audited},
    ]
    names = [entry["state"] for entry in life]
    life = [{**entry, "at": "2026-01-01T00:00:00Z"} for entry in life[: names.index(state) + 1]]
    write_json(path / "recipe.json", {"deploy": None})
    write_json(path / "run.json", {"created": "", "stages": {}, "keys": {}, "life": life})
    return controlled
