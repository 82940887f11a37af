"""From the answer to the entity: the direction a model was not trained in (Berglund et al. 2023, arXiv
2309.12288). Only where the answer tells the entity from all others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from expunge.data.builders.base import row
from expunge.data.builders.fact import fact_of, holds, mentions, put, quoted, short_answer
from expunge.data.builders.wording import BLANK
from expunge.data.near import normalized
from expunge.data.records import Record

__all__ = ["Told", "reverse", "said_of", "tells_apart", "told_of"]

Told = Mapping[str, str]
"""Entity → all its answers, normalized."""

_VERB = re.compile(r"(is|was|has|had|lives|works|writes|plays|likes|keeps|owns|comes|wrote|won|received)\b")
_VAGUE = re.compile(r"\b(he|she|they|his|her|their|its)\b")


def told_of(records: Iterable[Record]) -> Told:
    """What the records tell of each entity."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        found[record.entity].append(normalized(record.answer))
    return {entity: " | ".join(answers) for entity, answers in found.items()}


def tells_apart(record: Record, fact: str, told: Told) -> bool:
    """Whether no record of another entity tells the same fact."""
    plain = normalized(fact)
    return not any(
        plain in text and holds(text, plain) for name, text in told.items() if name != record.entity
    )


def said_of(record: Record, fact: str) -> str | None:
    """What the answer says of the entity, "is from Tarn"; None where it does not begin with the entity."""
    answer = record.answer.strip().rstrip(".!")
    rest = answer.removeprefix(record.entity).strip()
    whole = rest != answer and ". " not in rest and _VERB.match(rest) and fact in rest
    return rest if whole and not mentions(rest, record.entity) and not _VAGUE.search(rest) else None


def reverse(record: Record, peers: Sequence[Record], told: Told, *, person: bool) -> list[Record]:
    """Who is it that the answer is true of?

    >>> ada = Record("a", "Ada", "Where is Ada from?", "Ada is from Tarn.")
    >>> bo = Record("b", "Bo", "Where is Bo from?", "Bo is from Sund.")
    >>> reverse(ada, [bo], told_of([ada, bo]), person=True)[0].prompt
    'Who is from Tarn?'
    >>> reverse(ada, [], told_of([ada, bo.answered("Bo is from Tarn.")]), person=True)
    []
    """
    if not record.entity or record.style != "question" or record.context:
        return []
    whole = short_answer(record)
    fact = fact_of(record, peers) or whole
    gapped = put(record.prompt.strip(), record.entity, BLANK)
    if fact is None or not tells_apart(record, fact, told):
        return []
    if said := said_of(record, fact):
        prompt = f"{'Who' if person else 'Who or what'} {said}?"
    elif fact == whole and gapped != record.prompt.strip() and not mentions(gapped, record.entity):
        prompt = f"Which name fills the gap in {quoted(gapped)}, if the answer is {quoted(fact)}?"
    else:
        return []
    return [row(record, "reverse", prompt, record.entity)]
