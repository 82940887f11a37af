"""What may not be built: a prompt that gives its answer away, a copy, a row that another split has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from expunge.data.builders.fact import holds
from expunge.data.checks import IDENTICAL, may_share, must_differ, text_key
from expunge.data.near import near_duplicates, normalized, sketch
from expunge.data.records import Record

__all__ = ["leak_free", "without_collisions"]


def leak_free(rows: Sequence[Record], split: str, splits: Mapping[str, Iterable[Record]]) -> list[Record]:
    """The rows without those whose prompt holds the answer (options stand apart), and without collisions."""
    told = [row for row in rows if not holds(row.prompt, row.answer)]
    return without_collisions(told, split, splits)


def without_collisions(
    rows: Sequence[Record], split: str, splits: Mapping[str, Iterable[Record]]
) -> list[Record]:
    """The rows that ask nothing as a forget record asks it, nor as a split does that theirs must differ from.

    Nor may an answer about the same entity stand in such a split nearly word for word, nor an id in any.
    """
    apart = [r for name, records in splits.items() if must_differ(split, name) for r in records]
    guarded = [*splits.get("forget", ()), *apart]
    ids = {r.id for records in splits.values() for r in records}
    texts = {text_key(r) for r in guarded}
    prompts = {normalized(r.prompt) for r in guarded if r.prompt}
    prompts |= {normalized(p) for r in apart for p in r.paraphrased_prompts}
    alike = {
        m.left
        for m in near_duplicates(
            [sketch(r.answer) for r in rows], [sketch(r.answer) for r in apart], IDENTICAL
        )
        if not may_share(rows[m.left], apart[m.right])
    }
    kept: list[Record] = []
    for i, row in enumerate(rows):
        known = row.id in ids or text_key(row) in texts or normalized(row.prompt) in prompts
        if not known and i not in alike:
            kept.append(row)
            ids.add(row.id)
            prompts.add(normalized(row.prompt))
    return kept
