"""Removing what a run still holds of the data that had to disappear."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ConfigError, Problem
from expunge.reports.formatting import byte_size
from expunge.runs import deployment, kept, ledger
from expunge.runs.folder import cache_folder, kept_name, remove, write_json
from expunge.runs.notes import read_state

__all__ = ["purge"]

PURGED = "(purged)"

HOLDS_TEXT = ("baseline", "measure", "oracle-evidence", "attack", "planted", "models")
"""Stages whose files hold answers or generated texts, or a model that still knows them."""


def purge(folder: Path, *, everything: bool = False) -> list[str]:
    """Remove evidence, attack results, checkpoints and their cached copies; say what went and what did not.

    `everything`: also the models, the reports and the scorecard. The user's own files are never touched.
    """
    folder = Path(folder)
    if deployment.is_deployment(folder):
        return deployment.forget_previous(folder)
    state = read_state(folder)
    if not state:
        raise ConfigError(Problem(str(folder), "is no run folder", "See: expunge list runs"))
    cache = cache_folder(folder)
    doomed: list[Path] = []
    for name, keys in state["keys"].items():
        places = [cache / kept_name(name, key) for key in keys]
        doomed += [p.with_name(f"{p.name}.partial") for p in places]  # training checkpoints lie there
        if everything or name.split("/")[0] in HOLDS_TEXT:
            doomed += [folder / name, *places, *(p.with_name(f"{p.name}.lock") for p in places)]
    doomed += [folder / name for name in ("attack", "with-text", "explain", kept.FOLDER)]
    doomed += folder.glob(".*.tmp")
    if everything:
        doomed.append(folder)
    ledger.record(folder, "purged", everything=everything)
    removed = list(_remove(doomed))
    if not everything:
        removed += _forget_name(folder / "recipe.json")
    return [*removed, *_kept(folder, everything, _sharing(folder, state)), *_deployed(folder, state)]


def _remove(paths: Iterable[Path]) -> Iterator[str]:
    for path in dict.fromkeys(paths):
        if path.exists():
            files = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
            size = sum(f.stat().st_size for f in files)
            remove(path)
            if size:
                yield f"removed {path} ({byte_size(size)})"


def _forget_name(recipe: Path) -> list[str]:
    """Take the entity's name out of a recipe that built its forget set from the model."""
    data = json.loads(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    if not isinstance(data.get("forget"), dict) or data["forget"].get("from_model") == PURGED:
        return []
    write_json(recipe, {**data, "forget": {"from_model": PURGED}})
    return [f"removed the entity's name from {recipe}"]


def _deployed(folder: Path, state: Mapping[str, Any]) -> list[str]:
    """What a deployment keeps for a rollback is not this run's to remove."""
    place = deployment.place_of(folder, state)
    if place is None or not deployment.kept_models(place):
        return []
    return [
        f"not touched: {place}, which keeps earlier models for a rollback; they know the forget set. "
        f"Remove them with: expunge purge {place}"
    ]


def _sharing(folder: Path, state: Mapping[str, Any]) -> list[str]:
    """Runs beside this one that computed the same things: they have copies of their own."""
    ours = {(name, key) for name, keys in state["keys"].items() for key in keys}
    found = []
    for other in sorted(folder.absolute().parent.iterdir()):
        theirs = (read_state(other) or {}).get("keys", {}) if other != folder.absolute() else {}
        if ours & {(n, k) for n, ks in theirs.items() if n.split("/")[0] in HOLDS_TEXT for k in ks}:
            found.append(str(folder.parent / other.name))
    return found


def _kept(folder: Path, everything: bool, sharing: list[str]) -> Iterator[str]:
    card = folder / "scorecard.json"
    if card.is_file():
        texts = json.loads(card.read_text(encoding="utf-8")).get("shows_text")
        holds = (
            "they hold forget-set text, as you asked; --all removes them"
            if texts
            else "they hold ids and numbers"
        )
        yield f"kept the models, {card} and the reports ({holds})"
    for file in sorted(folder.glob("*/model/wrapper.json")):
        yield (
            f"kept {file.parent}, a wrapped model: what it wraps still knows the forget set; --all removes it"
        )
    for other in sharing:
        yield f"not touched: {other}, a run with copies of its own; purge it as well"
    yield "not touched: your own data files and the original model, which still knows the forget set"
