"""From files to a complete, checked request. What is missing is built where it can be, and so marked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from expunge.data.builders import Auto, build_auto
from expunge.data.checks import IDENTICAL, check_request, may_share, must_differ, text_key
from expunge.data.findings import Findings
from expunge.data.formats import Source, load_splits
from expunge.data.near import near_duplicates, sketch
from expunge.data.records import Record
from expunge.data.request import SPLITS, Request, Target
from expunge.errors import DataError, Problem, nearest
from expunge.stats import seed_from

__all__ = ["complete_request", "load_request"]

Splits = Mapping[str, Sequence[Record]]


def load_request(
    sources: Mapping[str, Source],
    *,
    columns: Mapping[str, Any] | None = None,
    target: Target | None = None,
    seed: int = 0,
    bar: bool = True,
    made: Mapping[str, Sequence[Record]] | None = None,
    built: Mapping[str, str] | None = None,
    auto: Auto | None = None,
) -> tuple[Request, list[str]]:
    """Read, check and complete a request; returns it with the warnings.

    `sources` maps splits to files, folders or hub ids (`expunge.data.formats`), `columns` the fields expected
    to the files' column names. `bar`: there must be calibration records, or retain to cut them from. `made`:
    splits that are there already; `built`: how those came about that nobody brought; `auto`: splits to build
    of the others (`expunge.data.builders`).
    Raises one DataError with all problems of all files.
    """
    found = Findings()
    for split in [s for s in sources if s not in SPLITS]:
        found.add(split, "unknown split", nearest(split, SPLITS))
    made = dict(made or {})
    if "forget" not in {*sources, *made}:
        found.add("forget", "no forget records are named", "Bring what is to be forgotten")
    splits = load_splits({s: p for s, p in sources.items() if s in SPLITS}, columns=columns, findings=found)
    splits |= {s: tuple(records) for s, records in made.items()}
    given = dict(built or {})
    request = Request({s: records for s, records in splits.items() if records}, target or Target(), given)
    unread = bool(found.problems)
    if request.forget:
        check_request(request, found)
    if auto and auto.splits and request.forget and not found.problems:
        more = build_auto(request.splits, auto, seed)
        given |= more.built
        found.warnings.extend(more.warnings)
        request = replace(request, splits=more.splits, built=given)
    try:
        # what could not be read cannot be said to be missing
        complete = (
            request if unread else complete_request(request.splits, target=request.target, seed=seed, bar=bar)
        )
    except DataError as error:
        found.problems.extend(error.problems)
    found.raise_problems()
    complete = replace(complete, built={**given, **complete.built})
    again = Findings(origins=found.origins)
    check_request(complete, again).raise_problems()
    if complete["calibration"] and not complete["report"]:
        found.warn(
            "there are no report records: what is retained is scored on the records the control was set on"
        )
    return complete, found.warnings


def complete_request(
    splits: Splits,
    *,
    target: Target | None = None,
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
    cap: int = 400,
    bar: bool = True,
) -> Request:
    """The request with what it lacks built: calibration and report from retain, forget_hard from paraphrases.

    `shares` are the parts of retain to cut (a third each), of at most `cap` records. Whole entities are cut
    where there are enough of them. Without retain, calibration must be given where a `bar` is to hold. The
    same seed and records give the same cut in any order, and one more record moves few others. Raises
    DataError where a split would be left empty.
    """
    given = {split: tuple(records) for split, records in splits.items() if records}
    built: dict[str, str] = {}
    if "forget_hard" not in given:
        hard = tuple(row for record in given.get("forget", ()) for row in _paraphrases(record))
        if hard:
            given["forget_hard"] = hard
            built["forget_hard"] = f"{len(hard)} paraphrased prompts of the forget records"
    wanted = {"calibration": 1 / 3, "report": 1 / 3} | dict(shares or {})
    missing = {split: share for split, share in wanted.items() if split not in given}
    if "retain" in given:
        if missing:
            cut = _cut(given, missing, seed=seed, cap=cap)
            for split in missing:
                built[split] = _describe(split, cut, given["retain"], seed)
            given |= cut
    elif "calibration" in missing and bar:
        fix = "Bring retain records (they may be unrelated public text), or calibration records"
        raise DataError(
            Problem("retain", "there is neither retain nor calibration, so nothing holds the bar", fix)
        )
    return Request(given, target or Target(), built)


def _paraphrases(record: Record) -> list[Record]:
    plain = replace(record, paraphrased_prompts=(), source_id=record.id, form="paraphrase")
    return [
        replace(plain, id=f"{record.id}.paraphrase-{j}", prompt=prompt)
        for j, prompt in enumerate(record.paraphrased_prompts)
    ]


def _describe(split: str, cut: Splits, retain: Sequence[Record], seed: int) -> str:
    entities = len({r.entity for r in cut[split]} - {""})
    of = f" about {entities} entities" if entities > 1 else ""
    return f"{len(cut[split])} of {len(retain)} retain records{of}, cut by seed {seed} and never trained on"


def _cut(
    given: Splits, missing: Mapping[str, float], *, seed: int, cap: int
) -> dict[str, tuple[Record, ...]]:
    """Retain and its cut parts, each in file order. Tries whole entities first, then single records."""
    retain = given["retain"]
    barred = {part: _barred(part, given) for part in missing}
    alike = _alike(retain)
    for by_entity in (True, False):
        groups = _groups(retain, alike, by_entity=by_entity)
        parts = _share_out(retain, groups, missing, barred, seed=seed, cap=cap)
        if parts is not None:
            taken = {i for part in parts.values() for i in part}
            parts["retain"] = [i for i in range(len(retain)) if i not in taken]
            return {split: tuple(retain[i] for i in sorted(part)) for split, part in parts.items()}
    usable = f", {len(groups)} of them different" if len(groups) < len(retain) else ""
    raise DataError(
        Problem(
            "retain",
            f"{len(retain)} records{usable}, too few to cut {' and '.join(missing)} from",
            f"Bring at least {len(missing) + 1} that are in no other split, or give {' and '.join(missing)}",
        )
    )


def _share_out(
    retain: Sequence[Record],
    groups: Mapping[str, list[int]],
    missing: Mapping[str, float],
    barred: Mapping[str, set[int]],
    *,
    seed: int,
    cap: int,
) -> dict[str, list[int]] | None:
    """Whole groups for each part, ordered by a hash of (seed, part, group) alone; None if one stays empty.

    A part takes the groups that fit under its quota, or the smallest there is.
    """
    free = dict(groups)
    parts: dict[str, list[int]] = {}
    for part, share in missing.items():
        quota = max(1, min(cap, round(share * len(retain))))
        order = sorted(free, key=lambda key: (seed_from(seed, part, key), key))
        order = [key for key in order if not barred[part].intersection(free[key])]
        taken: list[str] = []
        room = quota
        for key in order:
            if len(free[key]) <= room:
                taken.append(key)
                room -= len(free[key])
        taken = taken or sorted(order, key=lambda key: len(free[key]))[:1]
        keep = len(missing) - len(parts)  # groups the later parts and retain need
        taken = taken[: max(0, len(free) - keep)]
        if not taken:
            return None
        parts[part] = [i for key in taken for i in free.pop(key)]
    return parts if free else None


def _groups(
    retain: Sequence[Record], alike: list[tuple[int, int]], *, by_entity: bool
) -> dict[str, list[int]]:
    """Records that must stay together, by a name that does not depend on the others."""
    names = [f"entity {r.entity}" if by_entity and r.entity else f"record {r.id}" for r in retain]
    root = {name: name for name in names}

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = name = root[root[name]]
        return name

    for i, j in alike:
        a, b = sorted((find(names[i]), find(names[j])))
        root[b] = a
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        groups[find(name)].append(i)
    return groups


def _alike(records: Sequence[Record]) -> list[tuple[int, int]]:
    """Pairs that `check_request` would not let stand in two splits that must differ."""
    return _same(records, records)


def _barred(part: str, given: Splits) -> set[int]:
    """Retain records that may not be cut into `part`, since another split has them."""
    retain = given["retain"]
    others = [s for s in given if s != "retain" and must_differ(part, s) and not must_differ("retain", s)]
    return {i for split in others for i, _ in _same(retain, given[split])}


def _same(left: Sequence[Record], right: Sequence[Record]) -> list[tuple[int, int]]:
    """Pairs of records with one id, one text or nearly one answer."""
    ids: dict[str, int] = {r.id: j for j, r in enumerate(right)}
    texts: dict[tuple[str, ...], int] = {text_key(r): j for j, r in enumerate(right)}
    pairs = [(i, ids[r.id]) for i, r in enumerate(left) if r.id in ids]
    pairs += [(i, texts[key]) for i, r in enumerate(left) if (key := text_key(r)) in texts]
    sketches = [sketch(r.answer) for r in left], [sketch(r.answer) for r in right]
    pairs += [
        (m.left, m.right)
        for m in near_duplicates(*sketches, IDENTICAL)
        if not may_share(left[m.left], right[m.right])
    ]
    return pairs
