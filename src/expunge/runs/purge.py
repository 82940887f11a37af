"""Removing what a run still holds of the data that had to disappear."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from expunge.errors import ConfigError, Problem
from expunge.runs.folder import cache_folder

__all__ = ["purge"]

HOLDS_TEXT = ("baseline", "measure", "oracle-evidence", "attack", "planted", "with-text")
"""Stages whose files hold answers or generated texts, or a model that still knows them."""

MODELS = ("unlearn", "control", "oracle")


def purge(folder: Path, *, everything: bool = False) -> list[str]:
    """Remove evidence, attack results, training checkpoints and their cached copies; say what was removed.

    `everything`: also the models, the reports and the scorecard. The user's own files are never touched.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise ConfigError(Problem(str(folder), "is no run folder", "See: expunge list runs"))
    state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    cache = cache_folder(folder)
    doomed: list[Path] = []
    for name, facts in state.get("stages", {}).items():
        top = name.split("/")[0]
        if top in HOLDS_TEXT or (everything and top in MODELS):
            doomed += [folder / name, cache / f"{name.replace('/', '-')}-{facts['key']}"]
    doomed += [folder / "attack", folder / "with-text"]
    doomed += [p for p in cache.glob("*.partial") if p.is_dir()]
    doomed += [p for stage in MODELS for p in (folder / stage).rglob("checkpoint") if p.is_dir()]
    if everything:
        doomed += [folder]
    return [*_remove(doomed), *_kept(folder, everything)]


def _remove(paths: list[Path]) -> Iterator[str]:
    for path in dict.fromkeys(paths):
        if path.exists():
            size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield f"removed {path} ({size / 2**20:.1f} MiB)"


def _kept(folder: Path, everything: bool) -> Iterator[str]:
    if not everything:
        shown = [f"{folder / name}" for name in ("report.html", "scorecard.json") if (folder / name).exists()]
        if shown:
            yield f"kept {', '.join(shown)} (they hold ids and numbers; text only if you asked for it)"
    yield "not touched: your own data files and the original model, which still knows the forget set"
