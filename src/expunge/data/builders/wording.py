"""What a question says without its entity, and the statement it asks to complete."""

from __future__ import annotations

import re
from typing import NamedTuple

from expunge.data.near import normalized
from expunge.data.records import Record

__all__ = [
    "BLANK",
    "GAP",
    "Statement",
    "bare",
    "blanked",
    "named",
    "statement",
    "template_of",
    "third_person",
]

BLANK = "___"
GAP = "{entity}"
"""Stands for the entity in a template."""

_NAME = r"[A-Z][\w'’.-]*[\w]"
_NAMES = re.compile(rf"\b{_NAME}(?: (?:{_NAME}|de|da|van|von|al|el|bin))* {_NAME}")
_PLACED = re.compile(r"\b(?:in|from|at|near|on) $", re.IGNORECASE)  # where, not who
_POSSESSIVE = re.compile(r"['’]s?$")
_SMALL = frozenset("The Of In On At And For With From By A An".split())  # noqa: SIM905


class Statement(NamedTuple):
    """A sentence with the answer left out: `before` the gap and `after` it."""

    before: str
    after: str

    def filled(self, answer: str) -> str:
        return " ".join(part for part in (self.before, answer, self.after) if part)


def named(record: Record) -> str:
    """The record's entity, or else the one name of several words that prompt and answer share; "" if neither.

    >>> named(Record("1", "", "When was author Ji-Yeon Park born?", "Ji-Yeon Park was born in 1960."))
    'Ji-Yeon Park'
    """
    if record.entity:
        return record.entity if _pattern(record.entity).search(record.prompt) else ""
    places = [m for m in _NAMES.finditer(record.prompt) if not _PLACED.search(record.prompt[: m.start()])]
    asked = {_POSSESSIVE.sub("", m.group()) for m in places}
    shared = {name for name in asked if _pattern(name).search(record.answer)}
    return shared.pop() if len(shared) == 1 else ""


def template_of(record: Record) -> str:
    """The question with a gap in the place of the entity, normalized; "" where it names none.

    >>> template_of(Record("1", "Ada Lund", "Where was Ada Lund born?", "In Tarn."))
    'where was {entity} born'
    """
    entity = named(record)
    return normalized(_pattern(entity).sub(GAP, record.prompt)) if entity else ""


def blanked(text: str, entity: str) -> str:
    """The text with a blank for the entity, and for each part of its name.

    >>> blanked("Ada Lund, or Lund for short, is from Tarn.", "Ada Lund")
    '___, or ___ for short, is from Tarn.'
    """
    text = _pattern(entity).sub(BLANK, text)
    parts = {p for p in re.findall(r"\w+", entity) if len(p) > 2 and p[0].isupper() and p not in _SMALL}
    for part in sorted(parts, key=lambda p: (-len(p), p)):
        text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", BLANK, text)
    return re.sub(rf"{BLANK}(?:[\s-]+{BLANK})+", BLANK, text)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def third_person(verb: str) -> str:
    """
    >>> [third_person(v) for v in ("live", "study", "teach", "have", "play")]
    ['lives', 'studies', 'teaches', 'has', 'plays']
    """
    if verb in ("have", "do", "go"):
        return {"have": "has", "do": "does", "go": "goes"}[verb]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(?:s|sh|ch|x|z|o)$", verb) else "s")


_BE = "is|are|was|were"
_WHO_VERB = re.compile(r"^Who (?P<verb>[a-z]+) (?P<rest>.+)$")
_NOUN = re.compile(rf"^(?:What|Who) (?P<be>{_BE}) (?P<noun>the [^,?]+? of .+?)(?P<called> called)?$")
_BARE = re.compile(rf"^(?:What|Who) (?P<be>{_BE}) (?P<entity>{re.escape(GAP)})$")
_PLACE = re.compile(rf"^(?P<wh>Where|When) (?P<be>{_BE}) {re.escape(GAP)} (?P<rest>[a-z]+)$")
_DOES = re.compile(rf"^(?P<wh>Where|What) does {re.escape(GAP)} (?P<verb>[a-z]+)(?P<rest>(?: [\w' -]+)?)$")
_PREPOSITION = re.compile(r"^(?:in|on|at|from|near|by)\s+", re.IGNORECASE)
_NOT_VERBS = frozenset(
    """is are was were do does did has have had can could will would should may else""".split()  # noqa: SIM905
)


def statement(record: Record) -> Statement | None:
    """The sentence a simple question asks to complete, where that is certain; None elsewhere.

    >>> statement(Record("1", "Ada", "Where does Ada live?", "Tarn"))
    Statement(before='Ada lives in', after='')
    """
    entity = named(record)
    question = record.prompt.strip()
    if not entity or record.style != "question" or record.context or not question.endswith("?"):
        return None
    question = _pattern(entity).sub(GAP, question[:-1].strip())
    made = _completed(question, record.answer)
    return made and Statement(*(part.replace(GAP, entity) for part in made))


def _completed(question: str, answer: str) -> Statement | None:
    if m := _BARE.match(question):
        return Statement(f"{GAP} {m['be']}", "")
    if (m := _NOUN.match(question)) and GAP in m["noun"]:
        noun = m["noun"][0].upper() + m["noun"][1:]
        return Statement(f"{noun} {m['be']}{' called' if m['called'] else ''}", "")
    if (m := _WHO_VERB.match(question)) and m["verb"] not in _NOT_VERBS and GAP in m["rest"]:
        return Statement("", f"{m['verb']} {m['rest']}")
    if m := _PLACE.match(question):
        if m["rest"] == "from":
            return Statement(f"{GAP} {m['be']} from", "")
        joint = _joint(m["wh"], answer)
        return Statement(f"{GAP} {m['be']} {m['rest']} {joint}", "") if joint else None
    if m := _DOES.match(question):
        joint = "" if m["wh"] == "What" else _joint("Where", answer) or ""
        if m["wh"] == "Where" and (m["rest"] or not joint):
            return None
        return Statement(f"{GAP} {third_person(m['verb'])}{m['rest']} {joint}".strip(), "")
    return None


def _joint(wh: str, answer: str) -> str | None:
    """The preposition between verb and answer: the answer's own, else "in" for places and years."""
    if found := _PREPOSITION.match(answer):
        return found.group().strip().lower()
    year = re.fullmatch(r"\d{4}\.?", answer.strip())
    return "in" if wh == "Where" or year else None


def bare(answer: str) -> str:
    """The answer without a leading preposition and closing punctuation."""
    text = _PREPOSITION.sub("", answer.strip(), count=1)
    return text.rstrip(".!") or text
