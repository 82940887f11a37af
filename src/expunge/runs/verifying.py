"""`expunge verify`: whether a run is what its certificate says, its numbers what its evidence says."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.audit.scorecard import Scorecard
from expunge.errors import ConfigError, Problem
from expunge.metrics import make_metric
from expunge.runs import certificate, ledger
from expunge.runs.facts import secret_key
from expunge.runs.folder import cache_folder
from expunge.runs.kept import FOLDER
from expunge.runs.notes import read_json, read_recipe
from expunge.runs.purge import HOLDS_TEXT, PURGED
from expunge.runs.stages import read_splits
from expunge.runs.tracing import trace

__all__ = ["verify"]

PURGEABLE = (*HOLDS_TEXT, FOLDER)


def verify(run: Path, public: Path | None = None) -> dict[str, Any]:
    """{run, problems, said}: every problem names the file, what was expected and what was found."""
    run = Path(run)
    made = read_json(run / certificate.FILE)
    if made is None:
        what = "has no run certificate: it is no finished run, or was made by an older version"
        raise ConfigError(Problem(str(run), what, "Run its recipe again"))
    if not isinstance(made, dict) or made.get("kind") != "run certificate":
        return {"run": str(run), "problems": [f"{run / certificate.FILE}: cannot be read"], "said": []}
    said: list[str] = []
    try:
        problems = [*_signed(run, made, public, said), *_hashes(run, made, said), *_ledger(run, made)]
    except (AttributeError, KeyError, TypeError) as error:
        problems = [f"{run / certificate.FILE}: damaged ({type(error).__name__}: {error})"]
    if not problems:
        problems = list(_numbers(run, said))
    return {"run": str(run), "problems": problems, "said": said}


def _signed(run: Path, made: Mapping[str, Any], public: Path | None, said: list[str]) -> Iterator[str]:
    if public is not None:
        if wrong := certificate.signature_problem(made, public):
            yield f"{run / certificate.FILE}: {wrong}"
        else:
            said.append(f"signed by {made['signed_by']}, signature checked")
    elif "signature" in made:
        said.append(f"signed by {made['signed_by']}, signature not checked")
    else:
        said.append("not signed")


def _hashes(run: Path, made: Mapping[str, Any], said: list[str]) -> Iterator[str]:
    key = _key(run)
    keyed = key is not None and certificate.key_mark(key) == made["key"]
    if not keyed:
        said.append(f"{FOLDER}/ not checked: the key of its hashes is not here (EXPUNGE_KEY)")
    purged = _purged(run)
    if purged:
        said.append("purged: evidence, attack results and request are gone, as asked")
    for name, expected in made["files"].items():
        room = name.split("/")[0]
        if room == FOLDER and not keyed:
            continue
        if purged and (room in PURGEABLE or name.endswith(".tmp")) and not (run / name).exists():
            continue
        if name == "recipe.json" and _forgot_name(run):
            said.append("recipe.json: the entity's name was taken out by purge")
            continue
        yield from _compare(run / name, name, expected, key or b"")
    if certificate.notes_hash(run) != made["notes"]:
        found = certificate.notes_hash(run) or "nothing that can be read"
        yield f"{run / 'run.json'}: expected {made['notes']}, found {found}"
    for model, known in made["models"].items():
        for name, expected in known["files"].items():
            for problem in _compare(Path(known["place"]) / name, name, expected, key or b""):
                yield f"{model}: {problem}"


def _compare(path: Path, name: str, expected: str, key: bytes) -> Iterator[str]:
    found = certificate.file_hash(path, name, key) if path.is_file() else "no file"
    if found != expected:
        yield f"{path}: expected {expected}, found {found}"


def _ledger(run: Path, made: Mapping[str, Any]) -> Iterator[str]:
    path = ledger.ledger_of(run)
    yield from ledger.check_chain(path)
    if made["ledger_head"] not in {entry["hash"] for entry in ledger.entries(path)}:
        yield f"{path}: expected entry {made['ledger_head']} of {run.name}, found none"


def _numbers(run: Path, said: list[str]) -> Iterator[str]:
    """Every score again, from the stored evidence."""
    folders = [f for room in ("baseline", "measure") for f in sorted((run / room).glob("*")) if f.is_dir()]
    models = {folder.name: read_splits(folder) for folder in folders}
    if not models:
        said.append("numbers not recomputed: the evidence is gone")
        return
    card = Scorecard.read(run / "scorecard.json")
    seed = int(card.provenance.get("seed", 0))
    peers = {"original": models.get("original"), "oracle": models.get("oracle")}
    for row in card.scores:
        score = make_metric(row.metric).score(models[row.model], row.split, **peers, seed=seed)
        if not _same(row.value, score.value):
            name = f"{row.metric}/{row.split}/{row.model}"
            where = f"{run / 'scorecard.json'}: {name}"
            yield f"{where}: expected {score.value} by its evidence, found {row.value}"
    rows = 0
    for attack in sorted({row.attack for row in card.attacks if row.evidence}):
        for found in trace(run, attack):
            rows += 1
            if not _same(found.told, found.again):
                where = f"{run / 'scorecard.json'}: attack {found.name}"
                yield f"{where}: expected {found.again} by its stored results, found {found.told}"
    said.append(f"{len(card.scores)} scores and {rows} attack rows recomputed from evidence")
    made = read_json(run / certificate.FILE)
    if made["verdict"] != card.verdict.word:
        yield f"{run / certificate.FILE}: verdict: expected {card.verdict.word}, found {made['verdict']}"


def _same(told: float | None, again: float | None) -> bool:
    if told is None or again is None:
        return told is again
    return math.isclose(told, again, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(told) and math.isnan(again))


def _key(run: Path) -> bytes | None:
    """The secret of the keyed hashes, if there is one; a check draws none."""
    there = os.environ.get("EXPUNGE_KEY") or (cache_folder(run) / "key").is_file()
    return secret_key(run) if there else None


def _purged(run: Path) -> bool:
    return any((e["run"], e["state"]) == (run.name, "purged") for e in ledger.entries(ledger.ledger_of(run)))


def _forgot_name(run: Path) -> bool:
    forget = read_recipe(run).get("forget")
    return isinstance(forget, dict) and forget.get("from_model") == PURGED
