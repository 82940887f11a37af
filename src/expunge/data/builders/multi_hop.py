"""Two facts in one question, joined through the entity they share (cf. Zhong et al. 2023, MQuAKE, arXiv
2305.14795): a model that only lost the direct question may still answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from expunge.data.builders.base import row
from expunge.data.builders.fact import fact_of, holds, mentions, put, quoted
from expunge.data.builders.reverse import Told, said_of, tells_apart
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["TITLES", "multi_hop"]

THAT = "that person"
TITLES = r"author|writer|doctor|dr\.|mr\.|mrs\.|ms\.|named|called"
_TITLED = re.compile(rf"\b({TITLES}) {THAT}", re.IGNORECASE)

Peers = Callable[[Record], Sequence[Record]]
"""Records that ask the same of another entity."""


def multi_hop(record: Record, forget: Sequence[Record], told: Told, peers: Peers, seed: int) -> list[Record]:
    """The record's question about a person who is described by another forget record.

    >>> pal = Record("p", "Bo", "Who plays chess with Bo?", "Ada")
    >>> home = Record("h", "Ada", "Where does Ada live?", "Tarn")
    >>> multi_hop(home, [pal, home], {}, lambda r: [], 0)[0].prompt
    'Think of the answer to "Who plays chess with Bo?" Where does that person live?'
    """
    if not record.entity or record.style != "question" or record.context:
        return []
    asked = put(record.prompt.strip(), record.entity, THAT)
    if (
        THAT not in asked
        or not asked.endswith("?")
        or mentions(asked, record.entity)
        or _TITLED.search(asked)
    ):
        return []
    gold = [text for text in (record.answer, fact_of(record, peers(record))) if text]
    near = [
        r for r in forget if r.entity == record.entity or normalized(r.answer) == normalized(record.entity)
    ]
    for other in sorted(near, key=lambda r: (seed_from(seed, "multi_hop", record.id, r.id), r.id)):
        first = _by_answer(record, other) or _by_fact(record, other, asked, told, peers)
        if first and not mentions(first, record.entity) and not any(holds(first, text) for text in gold):
            return [row(record, "multi_hop", f"{first} {asked}")]
    return []


def _by_answer(record: Record, other: Record) -> str | None:
    """Another's answer is this record's entity."""
    same = normalized(other.answer) == normalized(record.entity) and other.entity != record.entity
    asks = same and other.style == "question" and other.prompt.rstrip().endswith("?")
    return f"Think of the answer to {quoted(other.prompt)}" if asks else None


def _by_fact(record: Record, other: Record, asked: str, told: Told, peers: Peers) -> str | None:
    """Another fact about the same entity, which the question does not hold, tells it from all others."""
    if other.entity != record.entity or other.id == record.id or other.prompt == record.prompt:
        return None
    fact = fact_of(other, peers(other))
    if fact is None or holds(asked, fact) or not tells_apart(other, fact, told):
        return None
    said = said_of(other, fact)
    return f"Someone {said}." if said else None
