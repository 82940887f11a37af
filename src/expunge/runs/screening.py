"""What is odd about a request before anything is trained: it is said, and nothing is dropped.

Duplicates, forget sets out of proportion, forget records that look like benign data (erasing them would erase
common knowledge), and, once the original was measured, records it shows no sign of knowing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from expunge.data.near import near_duplicates, normalized, sketch
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import DataError, Problem
from expunge.evidence import Evidence
from expunge.metrics import compute
from expunge.runs.recipe import Recipe

__all__ = ["likely_nonmembers", "screen", "screened", "seen_before"]

OVERSIZE = 0.5
"""Share of forget among forget and retain above which the request is called oversize."""

ALIKE = 0.8  # Jaccard overlap of word triples of two answers
BENIGN = ("retain", "utility", "report", "calibration")
SHOWN = 5
MARGIN = 0.05
"""A record known no better than the best-known holdout records, within this, was unlikely seen."""

LUCKY = 0.05
"""Share of the holdout that a model may have guessed."""


def screened(recipe: Recipe, request: Request) -> list[str]:
    """The findings as warnings; DataError with all of them where the recipe says `screen: refuse`."""
    found = screen(request)
    if found and recipe.screen == "refuse":
        fix = "Mend the request, or say screen: warn"
        raise DataError([Problem("forget", text.removeprefix("screening: "), fix) for text in found])
    return found


def screen(request: Request) -> list[str]:
    """What can be said without a model, one sentence each."""
    found = [*_duplicates(request.forget), *_oversize(request)]
    for split in BENIGN:
        if alike := _alike(request.forget, request[split]):
            found.append(f"screening: {len(alike)} forget records look like {split} records: {_some(alike)}")
    return found


def seen_before(mark: str, run: str, ledger: Collection[Mapping[str, Any]]) -> list[str]:
    """A request for the same forget set whose model is in use; `mark` is its keyed hash, as in the ledger.

    Two runs of one request, by two methods say, are no duplicate before one of them is released.
    """
    asked = {e["run"] for e in ledger if e["state"] == "requested" and e["facts"].get("forget") == mark}
    in_use: dict[str, bool] = {}
    for entry in ledger:
        if entry["state"] in ("released", "rolled back"):
            in_use[entry["run"]] = entry["state"] == "released"
    names = ", ".join(sorted(name for name in asked - {run} if in_use.get(name)))
    return [f"screening: a model that forgot the same records is in use, from {names}"] if names else []


def likely_nonmembers(evidence: Mapping[str, Evidence], metric: str) -> list[str]:
    """Forget records that the original knows no better than it knows data it never saw."""
    if "forget" not in evidence or "holdout" not in evidence:
        return []
    ours, unseen = (compute(metric, evidence, split).per_record for split in ("forget", "holdout"))
    if not ours or not unseen:
        return []
    line = np.quantile(list(unseen.values()), 1 - LUCKY, method="higher") + MARGIN
    weak = [record for record, value in ours.items() if value <= line]
    if not weak:
        return []
    share = f"{len(weak)} of {len(ours)}"
    return [f"screening: the original shows no sign of having seen {share} forget records: {_some(weak)}"]


def _duplicates(records: Collection[Record]) -> list[str]:
    seen: dict[tuple[str, str], str] = {}
    twice = []
    for record in records:
        text = (normalized(record.prompt), normalized(record.answer))
        if text in seen:
            twice.append(record.id)
        seen.setdefault(text, record.id)
    return [f"screening: {len(twice)} forget records are there twice: {_some(twice)}"] if twice else []


def _oversize(request: Request) -> list[str]:
    kept = ("retain", "calibration", "report")  # the last two are cut from what was brought as retain
    forget, retain = len(request.forget), sum(len(request[split]) for split in kept)
    share = forget / (forget + retain) if retain else 0.0
    if share <= OVERSIZE:
        return []
    return [
        f"screening: oversize, {forget} forget records beside {retain} retain records ({share:.0%}): little "
        "holds what must stay"
    ]


def _alike(forget: Collection[Record], benign: Collection[Record]) -> list[str]:
    """Ids of forget records with the answer, and the question, of a benign one but for a few words."""
    ours, theirs = list(forget), list(benign)
    left, right = ([sketch(f"{r.prompt} {r.answer}") for r in records] for records in (ours, theirs))
    return list(dict.fromkeys(ours[m.left].id for m in near_duplicates(left, right, ALIKE)))


def _some(ids: Collection[str]) -> str:
    shown = list(ids)[:SHOWN]
    return ", ".join(shown) + (", …" if len(ids) > SHOWN else "")
