"""A forget set that names only part of its target: queries held out, and forget data that nobody listed.

The whole of what should go is the *target data*. What the method is told to forget is the *listed forget
data*. *Held-out queries* ask about the same entities and are given to no method. *Hidden forget data* is
target as well, but nobody listed it, so it stands among what is kept (Zhu et al. 2024, arXiv 2406.08288).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.stats import seed_from

__all__ = ["HELD_OUT", "HIDDEN", "hold_out", "list_part", "whole_target"]

HELD_OUT, HIDDEN = "forget_held_out", "forget_hidden"


def hold_out(request: Request, share: float, seed: int = 0) -> Request:
    """The request with this share of each entity's forget records kept from the method: held-out queries."""
    moved = _part(request.forget, share, HELD_OUT, seed)
    how = f"{len(moved)} of {len(request.forget)} forget records, given to no method"
    return _moved(request, moved, HELD_OUT, how)


def list_part(request: Request, share: float, seed: int = 0) -> Request:
    """The request with this share of each entity's forget records listed; the others are hidden in retain."""
    moved = _part(request.forget, 1 - share, HIDDEN, seed)
    how = f"{len(moved)} of {len(request.forget)} target records, not listed, and among the retain records"
    hidden = _moved(request, moved, HIDDEN, how)
    return replace(hidden, splits={**hidden.splits, "retain": (*request.retain, *moved)})


def whole_target(request: Request) -> Request:
    """The request as it would be had all target data been listed: what an oracle is trained without."""
    rest = (*request[HELD_OUT], *request[HIDDEN])
    ids = {r.id for r in request[HIDDEN]}
    kept = tuple(r for r in request.retain if r.id not in ids)
    return replace(request, splits={**request.splits, "forget": (*request.forget, *rest), "retain": kept})


def _part(records: Sequence[Record], share: float, what: str, seed: int) -> tuple[Record, ...]:
    """So many of each entity's records, in the order given; where each has but one, so many of all.

    A group keeps at least one record, and gives at least one where it has two.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.entity].append(record)
    if max(map(len, groups.values()), default=0) < 2:
        groups = defaultdict(list, {"": list(records)})
    chosen: set[str] = set()
    for group in groups.values():
        count = min(len(group) - 1, math.ceil(share * len(group) - 1e-9))
        order = sorted(group, key=lambda r: (seed_from(seed, what, r.id), r.id))
        chosen.update(r.id for r in order[:count])
    return tuple(r for r in records if r.id in chosen)


def _moved(request: Request, moved: Sequence[Record], split: str, how: str) -> Request:
    """The request with these records in a split of their own; rows that ask them otherwise go."""
    ids = {r.id for r in moved}
    hard = tuple(r for r in request["forget_hard"] if r.source_id not in ids)
    splits = {
        **request.splits,
        "forget": tuple(r for r in request.forget if r.id not in ids),
        split: tuple(moved),
        "forget_hard": hard,
    }
    built = dict(request.built)
    if moved:
        gone = len(request["forget_hard"]) - len(hard)
        built[split] = how + (f"; {gone} forget_hard rows that ask for them left out" if gone else "")
    return replace(request, splits={name: rows for name, rows in splits.items() if rows}, built=built)
