"""What of an answer carries the fact, and small questions about texts that the forms share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from expunge.data.near import normalized
from expunge.data.records import Record

__all__ = ["SHORT", "fact_of", "holds", "is_person", "mentions", "put", "quoted", "short_answer"]

SHORT = 4
"""Words of an answer that is nothing but the fact, at most."""

_CAPITALIZED = r"[A-Z][\w'’-]*\w(?:(?: of| the| and| de)* [A-Z][\w'’-]*\w)*"
_FACT = re.compile(rf"[\"“]([^\"“”]+)[\"”]|({_CAPITALIZED})|(\d[\d/.,-]*\d|\d)")
_PERSON = re.compile(
    r"^who\b|\b(he|she|his|her|him|born|lives?|works?|parents?|father|mother|wife|husband|job|profession"
    r"|career|author|writer|gender|married|occupation)\b"
)


def holds(text: str, part: str) -> bool:
    """Whether a text holds another as whole words, whatever the case and the blanks.

    >>> holds("Is Ada from Tarn?", "tarn."), holds("Is Ada from Tarnby?", "Tarn")
    (True, False)
    """
    inner = normalized(part)
    return bool(inner) and bool(re.search(rf"(?<!\w){re.escape(inner)}(?!\w)", normalized(text)))


def mentions(text: str, entity: str) -> bool:
    """Whether any part of the name stands in the text."""
    return any(holds(text, part) for part in entity.split())


def put(text: str, old: str, new: str) -> str:
    """The text with one name for another, where it stands as whole words.

    >>> put("Where is Bo from, Bob?", "Bo", "Ada")
    'Where is Ada from, Bob?'
    """
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text) if old else text


def quoted(text: str) -> str:
    """The text in quotes that it does not hold itself."""
    return f"“{text.strip()}”" if '"' in text else f'"{text.strip()}"'


def short_answer(record: Record) -> str | None:
    """The whole answer where it is a few words long."""
    answer = record.answer.strip().rstrip(".!")
    yes_or_no = normalized(answer) in ("yes", "no")
    return answer if len(answer.split()) <= SHORT and not yes_or_no else None


def is_person(records: Iterable[Record]) -> bool:
    """Whether people are asked such questions as these records ask of one entity."""
    return any(_PERSON.search(r.prompt.casefold()) for r in records)


def fact_of(record: Record, peers: Iterable[Record] = ()) -> str | None:
    """The words of the answer that carry the fact, in one piece; None where they cannot be told.

    A keyword says it; else the words in which answers to the same question of others (`peers`) differ; else
    the only title, name or number of the answer that is not in the question.

    >>> bo = Record("b", "Bo", "Where is Bo from?", "Bo is from Sund.")
    >>> fact_of(Record("a", "Ada", "Where is Ada from?", "Ada is from Tarn."), [bo])
    'Tarn'
    """
    answer = record.answer.strip()
    if len(record.keywords) == 1 and answer.count(record.keywords[0]) == 1:
        return record.keywords[0]
    others = {put(peer.answer.strip(), peer.entity, record.entity) for peer in peers} - {answer}
    if others and (differing := _differing(answer, sorted(others))):
        return differing if answer.count(differing) == 1 else None
    if ". " in answer:
        return None  # a second sentence begins with a capital too, and may say the fact again
    facts = [next(group for group in match.groups() if group) for match in _FACT.finditer(answer)]
    new = [fact for fact in facts if not holds(record.prompt, fact) and not answer.startswith(fact)]
    return new[0] if len(new) == 1 and answer.count(new[0]) == 1 else None


def _differing(answer: str, others: Sequence[str]) -> str | None:
    """What is left of an answer without the words it begins and ends with as all others do.

    None where nothing is in common: the whole answer is the fact, or the sentences differ throughout.
    """
    words = answer.rstrip(".!").split()
    rest = [other.rstrip(".!").split() for other in others]
    shortest = min(len(words), *map(len, rest))
    start = next((i for i in range(shortest) if any(o[i] != words[i] for o in rest)), shortest)
    room = shortest - start
    end = next((i for i in range(room) if any(o[-1 - i] != words[-1 - i] for o in rest)), room)
    return " ".join(words[start : len(words) - end]) or None if start + end else None
