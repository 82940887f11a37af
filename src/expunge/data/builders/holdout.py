"""A holdout of invented people: the forget questions about names that nobody bears, with answers of others.

Weaker than records that were left out of training: a coined name is rarer than a real one, and an answer that
is true of another forget record is one the model has met. No claim of membership is clean with it.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from expunge.data.builders.leaks import without_collisions
from expunge.data.builders.wording import named, template_of
from expunge.data.near import normalized, sketch
from expunge.data.records import Record
from expunge.data.vague import proper_names
from expunge.stats import seed_from

__all__ = ["build_holdout"]

_SYLLABLES = tuple(onset + vowel for onset in "bdfgjklmnprstvz" for vowel in "aeiou")
_NUMBER = re.compile(r"\d+")
_CAPITALIZED = re.compile(r"\b[A-Z]\w+(?!['’]\w)\b")
_SMALL = {"The", "In", "On", "At", "And", "By", "From", "Near", "She", "He", "They", "It", "Yes", "No"}
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
MOST = 3  # names coined in one answer
PHRASE = 6  # words of an answer that is no sentence
STAYS = 0.5  # share of an answer's word triples that may be the real ones
NOW = 2025
"""No invented year is later, unless the record's own is."""


def build_holdout(splits: Mapping[str, Sequence[Record]], *, seed: int = 0) -> tuple[tuple[Record, ...], str]:
    """One record for each forget record that allows it, and a note on how they came about.

    Entity for entity a coined name; the answer of the next entity asked the same (in an order by hash), or,
    where no other is, the record's own with every name and number coined. Answers in which nothing can be
    coined are left out. Order of the records changes the order of the rows alone.
    """
    forget = splits.get("forget", ())
    shown = {
        w for records in splits.values() for r in records for w in re.findall(r"\w+", r.answer + r.prompt)
    }
    names = _Coined(seed, {w.casefold() for w in shown})
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in forget:
        if (template := template_of(record)) and _asks_of_anyone(record):
            groups[template].append(record)
    made: dict[str, Record] = {}
    swapped = 0
    for records in groups.values():
        for record, answer, from_other in _answers(records, names, seed):
            entity = named(record)
            name = names.name(entity)
            row = Record(
                f"{record.id}.built-holdout", name, _put(record.prompt, entity, name), answer,
                refusal=record.refusal,
            )  # fmt: skip
            made[record.id] = row
            swapped += from_other
    rows = [made[r.id] for r in forget if r.id in made]
    kept = without_collisions(rows, "holdout", splits)
    how = f"{swapped} with answers of other forget records, the rest with coined ones"
    return tuple(kept), f"{len(kept)} forget questions about invented names, {how}"


def _asks_of_anyone(record: Record) -> bool:
    """Whether the question says nothing that is true of its entity alone: no other name, number or title."""
    rest = _put(record.prompt, named(record), "someone")
    quoted = re.search(r"[\"“”]|(?:^|\s)['‘]\w", rest)
    plain = record.style == "question" and not record.context
    return plain and not quoted and not proper_names(rest) and not _NUMBER.search(rest)


def _answers(records: Sequence[Record], names: _Coined, seed: int) -> Iterator[tuple[Record, str, bool]]:
    """(record, what is said of its invented counterpart, whether another record's answer)."""
    order = sorted(records, key=lambda r: (seed_from(seed, "holdout", r.id), r.id))
    for i, record in enumerate(order):
        entity = named(record)
        name = names.name(entity)
        own = normalized(_put(record.answer, entity, ""))
        later = order[i + 1 :] + order[:i]
        other = next((r for r in later if normalized(_put(r.answer, named(r), "")) != own), None)
        if other is not None:
            yield record, _put(other.answer, named(other), name), True
        elif (coined := _coined_answer(record, entity, name, names)) is not None:
            yield record, coined, False


def _coined_answer(record: Record, entity: str, name: str, names: _Coined) -> str | None:
    """The record's own answer with every name, month and number coined; None where too much of it stays."""
    kept = _put(record.answer, entity, name)
    found = proper_names(kept)
    if len(kept.split()) <= PHRASE:  # no sentence: its first word may be a name as well
        found |= set(_CAPITALIZED.findall(kept)) - _SMALL
    found -= set(name.split())
    if len(found) > MOST or re.search(r"[\"“”‘]|[A-Z]\w*['’]", kept):
        return None  # a text with so much of it coined, or a coined title, is none that anyone would write
    text = kept
    for word in sorted(word for word in found if not word.isupper()):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", names.word(word), text)
    text = _NUMBER.sub(lambda m: names.number(m.group()), text)
    before, after = sketch(kept), sketch(text)
    if normalized(text) == normalized(kept):
        return None
    return None if before and len(before & after) > STAYS * len(before) else text


def _put(text: str, entity: str, name: str) -> str:
    """The text with one name for another, part by part where it stands alone (a surname for a surname)."""
    text = re.sub(rf"(?<!\w){re.escape(entity)}(?!\w)", lambda _: name, text, flags=re.IGNORECASE)
    new = name.split() or [""]
    for i, part in enumerate(entity.split()):
        if len(part) > 2 and part[0].isupper() and part not in _SMALL:
            text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", new[min(i, len(new) - 1)], text)
    return text


class _Coined:
    """Words and numbers that nobody bears, one for one, by hash of (seed, what they stand for)."""

    def __init__(self, seed: int, taken: set[str]):
        self.seed, self.taken = seed, taken

    def word(self, real: str) -> str:
        draw = random.Random(seed_from(self.seed, "coined", real.casefold()))
        if real in _MONTHS:
            return draw.choice([month for month in _MONTHS if month != real])
        while True:
            word = "".join(draw.sample(_SYLLABLES, 2 + (len(real) > 5)))
            if word not in self.taken:
                return word.capitalize()

    def name(self, entity: str) -> str:
        return " ".join(self.word(f"{i} {part}") for i, part in enumerate(entity.split()))

    def number(self, digits: str) -> str:
        """Another number that looks as likely: a year stays near itself, a day of the month is one."""
        draw = random.Random(seed_from(self.seed, "number", digits))
        value = int(digits)
        if value > 31:
            low, high = max(1, value - 15), min(value + 15, max(value, NOW))
        else:
            low, high = 1, 31 if value > 12 else 12
        return str(draw.choice([n for n in range(low, high + 1) if n != value])).zfill(len(digits))
