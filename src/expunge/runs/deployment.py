"""Where models are released to: a folder that serves one model and keeps those before it for a rollback.

    DIR/current            a link to the model in use; the one thing a release or a rollback switches
    DIR/models/FINGERPRINT every model that was in use, whole
    DIR/deployment.json    who released what, when, in place of what; hashes of all files

Each step is written down before it is taken, and the link moves in one rename: after a crash `current` still
points to a whole model, and the next command finishes the step. A model is read back and compared by
file hashes and by fingerprint before the link may point to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import ConfigError, ModelError, Problem
from expunge.runs.folder import now, remove, write_json
from expunge.runs.lifecycle import advance, current, entry
from expunge.runs.notes import read_state

__all__ = [
    "Deployment", "file_hashes", "forget_previous", "is_deployment", "kept_models", "opened", "place_of",
]  # fmt: skip

NOTE = "deployment.json"
LOCK = ".lock"
SCHEMA = 1

Switch = Callable[[], None]


def is_deployment(path: Path) -> bool:
    return (Path(path) / NOTE).is_file()


def place_of(run: Path, state: Mapping[str, Any]) -> Path | None:
    """The deployment a run was released to, as its own notes say; None where it was not, or that is gone."""
    noted = entry(state.get("life", []), "released").get("deployment")
    place = _seen(run, noted) if noted else None
    return place if place and is_deployment(place) else None


def _is_full(folder: Path) -> bool:
    return any(p.name != LOCK for p in folder.iterdir())


def _tidy(path: Path) -> None:
    """Remove models that no note names: nothing came of their release. A folder without a model goes."""
    deployed = Deployment(path)
    for model in [*(path / "models").glob("*"), *(path / "models").glob(".*.tmp")]:
        if model.name not in deployed.note["models"]:
            remove(model)
    if deployed.current is None:
        remove(path)


def _from(here: Path, there: Path) -> str:
    """How one folder names another, so that both may be moved together."""
    return os.path.relpath(there.resolve(), here.resolve())


def _seen(here: Path, named: str) -> Path:
    """The folder that another names, as seen from the working directory."""
    return Path(os.path.relpath((here.resolve() / named).resolve()))


def kept_models(place: Path) -> list[str]:
    """Fingerprints of the models that are kept beside the one in use."""
    deployed = Deployment(place)
    return sorted(set(deployed.note["models"]) - {deployed.current})


class Deployment:
    """The notes of one deployment folder. Raises ConfigError where they cannot be read."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.note: dict[str, Any] = {
            "schema": SCHEMA, "base": None, "releases": [], "models": {}, "unfinished": None,
        }  # fmt: skip
        if is_deployment(self.path):
            try:
                self.note = json.loads((self.path / NOTE).read_text(encoding="utf-8"))
                known = self.note["schema"] == SCHEMA
            except (ValueError, KeyError, TypeError, OSError):
                known = False
            if not known:
                what, fix = "is damaged or of another version", "Restore it from a backup"
                raise ConfigError(Problem(str(self.path / NOTE), what, fix))
        elif self.path.exists() and (not self.path.is_dir() or _is_full(self.path)):
            fix = "Choose an empty or a new folder; the model in use will be DIR/current"
            raise ConfigError(Problem(str(self.path), "exists and is no deployment folder", fix))

    @property
    def top(self) -> dict[str, Any] | None:
        """The release in force; None where there is none, or all were rolled back."""
        return next((r for r in reversed(self.note["releases"]) if not r["rolled_back"]), None)

    @property
    def current(self) -> str | None:
        """The fingerprint of the model that should be in use."""
        return self.top["fingerprint"] if self.top else self.note["base"]

    @property
    def unfinished(self) -> str | None:
        """The step that was written down but not taken to its end: release or rollback."""
        return self.note["unfinished"]

    def model(self, fingerprint: str) -> Path:
        return self.path / "models" / fingerprint

    def run_of(self, release: Mapping[str, Any]) -> Path:
        """The folder of a release's run, seen from here."""
        return _seen(self.path, release["run"])

    # Models -------------------------------------------------------------------------------------------

    def add(self, source: str, fingerprint: str, loading: Mapping[str, Any]) -> None:
        """Keep a model whole: copied, loaded again and compared before it counts."""
        target = self.model(fingerprint)
        if fingerprint not in self.note["models"] or self.damage(fingerprint):
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            remove(temporary)
            try:
                _copy(source, temporary, loading)
                _check_fingerprint(temporary, fingerprint, loading, source)
                files = file_hashes(temporary)
                remove(target)
                os.replace(temporary, target)
            finally:
                remove(temporary)
            self.note["models"][fingerprint] = {"loading": dict(loading), "files": files}

    def damage(self, fingerprint: str) -> list[str]:
        """Files of a kept model that are not as they were when it was put there."""
        noted = self.note["models"][fingerprint]["files"]
        found = file_hashes(self.model(fingerprint)) if self.model(fingerprint).is_dir() else {}
        return sorted(name for name in {**noted, **found} if noted.get(name) != found.get(name))

    def check(self, fingerprint: str) -> None:
        """Raise ModelError unless a kept model is there, bit for bit."""
        if odd := self.damage(fingerprint):
            what = f"is not as it was kept ({', '.join(odd[:3])})"
            raise ModelError(Problem(str(self.model(fingerprint)), what, "Restore it from a backup"))
        loading = self.note["models"][fingerprint]["loading"]
        _check_fingerprint(self.model(fingerprint), fingerprint, loading, str(self.model(fingerprint)))

    # Steps --------------------------------------------------------------------------------------------

    def release(self, run: Path, fingerprint: str, *, forced: str | None = None) -> None:
        """Switch to a kept model."""
        self.note["releases"].append(
            {
                "run": _from(self.path, run),
                "fingerprint": fingerprint,
                "previous": self.current,
                "at": now(),
                "forced": forced,
                "rolled_back": None,
            }
        )
        self.note["unfinished"] = "release"
        self.finish()

    def roll_back(self) -> dict[str, Any]:
        """Switch to the model before the release in force; that release."""
        top = self.top
        assert top is not None
        self.check(top["previous"])
        top["rolled_back"] = now()
        self.note["unfinished"] = "rollback"
        self.finish()
        return top

    def finish(self) -> None:
        """Write the step down, mark its run, switch, write down that it is done; all may be done twice."""
        write_json(self.path / NOTE, self.note)
        for release in self.note["releases"]:
            self._mark(release)
        assert self.current is not None
        link = self.path / f".current.{os.getpid()}.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("models") / self.current)
        os.replace(link, self.path / "current")
        self.note["unfinished"] = None
        write_json(self.path / NOTE, self.note)

    def _mark(self, release: Mapping[str, Any]) -> None:
        """The state of a release in its run's own notes, as far as the run is still there."""
        run = self.run_of(release)
        state = read_state(run)
        if not state or not state.get("life"):
            return
        life = state["life"]
        if current(life) == "audited" and not release["rolled_back"]:
            facts = {"controlled": release["fingerprint"], "previous": release["previous"]}
            facts |= {"deployment": _from(run, self.path), "forced": release["forced"]}
            life = advance(life, "released", release["at"], run=run, **facts)
        if current(life) == "released" and release["rolled_back"]:
            life = advance(life, "rolled back", release["rolled_back"], run=run, restored=release["previous"])
        if life != state["life"]:
            write_json(run / "run.json", {**state, "life": life})


@contextmanager
def opened(path: Path) -> Iterator[Deployment]:
    """A deployment for one process at a time."""
    path = Path(path)
    Deployment(path)  # nothing is written where it is none
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise ConfigError(Problem(str(path), what, "Choose another folder")) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_deployment(path):
            write_json(path / NOTE, Deployment(path).note)  # from here on the folder is ours
        try:
            yield Deployment(path)
        finally:
            _tidy(path)


def forget_previous(place: Path) -> list[str]:
    """Remove the models kept for a rollback: they still know what was forgotten. No way back then."""
    with opened(place) as deployed:
        if deployed.unfinished:
            deployed.finish()
        removed = []
        for fingerprint in kept_models(place):
            remove(deployed.model(fingerprint))
            del deployed.note["models"][fingerprint]
            removed.append(f"removed {deployed.model(fingerprint)}: no rollback to it any more")
        write_json(place / NOTE, deployed.note)
        return [*removed, f"kept {place / 'current'}, the model in use"]


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _copy(source: str, target: Path, loading: Mapping[str, Any]) -> None:
    """The files of a model, byte for byte: all of a folder of ours, of another one those on top (checkpoints
    may lie below). What comes from the hub or has adapters becomes one plain model."""
    folder = Path(source)
    if (folder / "expunge.json").is_file():
        shutil.copytree(folder, target)
    elif folder.is_dir() and not (folder / "adapter_config.json").exists():
        target.mkdir(parents=True)
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copy2(file, target / file.name)
    else:
        from expunge.subjects import save_subject
        from expunge.subjects.subject import load_subject

        save_subject(load_subject(source, device="cpu", **loading), target)


def _check_fingerprint(folder: Path, fingerprint: str, loading: Mapping[str, Any], source: str) -> None:
    from expunge.subjects.subject import load_subject

    found = load_subject(folder, device="cpu", **loading).fingerprint()
    if found != fingerprint:
        what = f"has the fingerprint {found}, {fingerprint} was noted"
        raise ModelError(Problem(source, what, "It was changed since; nothing was switched"))
