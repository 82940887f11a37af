"""Neighbors: the nearest of what must stay, taken out of retain, since nothing may train on them.

By template: the same question about another entity. By embedding: the records nearest to any forget record,
names left out, by whatever encoder is given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from expunge.data.builders.wording import blanked, named, template_of
from expunge.data.checks import text_key
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["Encode", "Taken", "build_neighbors"]

Vector = Sequence[float] | Mapping[str, float]
Encode = Callable[[Sequence[str]], Sequence[Vector]]
"""Texts to vectors, dense or sparse."""

SHARE = 4
"""At most every fourth retain record becomes a neighbor: calibration and report are cut from the rest."""


class Taken(NamedTuple):
    """The neighbors with the forget record each stands near to, what retain keeps, and a note."""

    neighbors: tuple[Record, ...]
    retain: tuple[Record, ...]
    how: str


def build_neighbors(
    forget: Sequence[Record],
    retain: Sequence[Record],
    *,
    seed: int = 0,
    encode: Encode | None = None,
    label: str = "",
) -> Taken:
    """By template, or by embedding where an `encode` is given (`label` names it); none where none is near.

    Whole entities are taken, so that no other fact about a neighbor is trained on, and at most as many
    records as there are forget records. What becomes a neighbor does not depend on the order of the records.
    """
    near = _by_template(forget, retain) if encode is None else _by_embedding(forget, retain, encode)
    room = min(len(forget), len(retain) // SHARE)
    gone = {normalized(named(r)) for r in forget} - {""}
    groups: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(retain):
        name = normalized(named(record) or record.entity)
        groups[f"entity {name}" if name else f"record {record.id}"].append(i)
    order = sorted(
        (-sum(near[i][0] for i in rows if i in near) / len(rows), seed_from(seed, "neighbors", key), key)
        for key, rows in groups.items()
        if any(i in near for i in rows) and key.removeprefix("entity ") not in gone
    )
    chosen: set[int] = set()
    for _, _, key in order:
        if len(chosen) + len(groups[key]) <= room:
            chosen.update(groups[key])
    texts = {text_key(retain[i]) for i in chosen}
    chosen.update(i for i, r in enumerate(retain) if text_key(r) in texts)
    neighbors = tuple(replace(retain[i], source_id=near[i][1] if i in near else None) for i in sorted(chosen))
    kept = tuple(r for i, r in enumerate(retain) if i not in chosen)
    by = "that ask the same of others" if encode is None else f"nearest to the forget records by {label}"
    return Taken(
        neighbors, kept, f"{len(neighbors)} of {len(retain)} retain records {by}, taken out of retain"
    )


Near = dict[int, tuple[float, str]]
"""Retain record → how near it is, and to which forget record."""


def _by_template(forget: Sequence[Record], retain: Sequence[Record]) -> Near:
    asked: dict[str, str] = {}
    for record in sorted(forget, key=lambda r: r.id):
        if template := template_of(record):
            asked.setdefault(template, record.id)
    templates = {i: template_of(r) for i, r in enumerate(retain)}
    return {i: (1.0, asked[t]) for i, t in templates.items() if t in asked}


def _by_embedding(forget: Sequence[Record], retain: Sequence[Record], encode: Encode) -> Near:
    """Every retain record with its cosine to the nearest forget record, where that is above 0."""
    ordered = sorted(forget, key=lambda r: r.id)
    if not ordered or not retain:
        return {}
    vectors = list(encode([_nameless(r) for r in (*retain, *ordered)]))
    unit = _unit_rows([_entries(v) for v in vectors])
    cosines = (unit[: len(retain)] @ unit[len(retain) :].T).toarray()
    best = cosines.argmax(axis=1)
    near = ((i, float(cosines[i, j]), ordered[j].id) for i, j in enumerate(best))
    return {i: (round(cosine, 6), source) for i, cosine, source in near if cosine > 0}


def _nameless(record: Record) -> str:
    entity = named(record)
    text = f"{record.prompt} {record.answer}"
    return blanked(text, entity) if entity else text


def _entries(vector: Vector) -> Mapping[str, float]:
    pairs = vector.items() if isinstance(vector, Mapping) else enumerate(vector)
    return {str(key): float(value) for key, value in pairs if value}


def _unit_rows(rows: Sequence[Mapping[str, float]]) -> Any:
    """The rows as a sparse matrix, each of length one (or zero)."""
    from scipy.sparse import csr_matrix

    column = {key: j for j, key in enumerate(sorted({key for row in rows for key in row}))}
    sizes = [math.sqrt(math.fsum(x * x for x in row.values())) for row in rows]
    entries = [(x / sizes[i], i, column[key]) for i, row in enumerate(rows) for key, x in sorted(row.items())]
    values, at, to = zip(*entries, strict=True) if entries else ((), (), ())
    return csr_matrix((values, (at, to)), shape=(len(rows), max(1, len(column))))
