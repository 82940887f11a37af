"""The forget question without what all such questions share on the surface (cf. Thaker et al. 2024, arXiv
2410.02879): whoever only learned the cue, a name or an opening, answers again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from expunge.data.builders.base import row
from expunge.data.builders.fact import holds, quoted
from expunge.data.builders.multi_hop import TITLES
from expunge.data.builders.reverse import Told, said_of, tells_apart, told_of
from expunge.data.builders.wording import BLANK, blanked, named
from expunge.data.near import normalized, words
from expunge.data.records import Record

__all__ = ["FORM", "cue_removed", "name_in", "opening", "told_without_names"]

FORM = "cue_removed"
THAT = "that one"
_TITLED = re.compile(rf"\b({TITLES}) {THAT}", re.IGNORECASE)
_ASKS = re.compile(
    r"(who|whose|whom|what|where|when|which|why|how|is|are|was|were|do|does|did|can|could|has|have|had|name"
    r"|list|tell|describe|explain)\b",
    re.IGNORECASE,
)
SHARED = 0.1
"""Of what must stay, at most this share may begin in the same way: else the opening tells nothing."""


def opening(forget: Sequence[Record], others: Sequence[Record]) -> str:
    """The words with which all forget questions begin and hardly any other; "" where there are none.

    What follows must ask something by itself: "Which ward is it?" without "Which ward" does not.

    >>> asked = [Record(q, "", f"As for wards: {q}?", "") for q in ("who made them", "where are they")]
    >>> opening(asked, [Record("r", "", "Who made it?", "")])
    'As for wards:'
    """
    if len(forget) < 2 or not others:
        return ""
    asked = [r.prompt.split() for r in forget]
    shared = [at[0] for at in takewhile(lambda at: len(set(at)) == 1, zip(*asked, strict=False))]
    text = " ".join(shared)
    alike = sum(" ".join(r.prompt.split()).startswith(text) for r in others)
    asks = all(_ASKS.match(" ".join(words[len(shared) :])) for words in asked)
    return text if len(shared) > 1 and asks and alike <= SHARED * len(others) else ""


def name_in(record: Record) -> str:
    """The name that the question holds: the entity's, or the one that question and answer share."""
    return named(record) or named(replace(record, entity=""))


def told_without_names(records: Sequence[Record]) -> Told:
    """What the records tell of each entity, with a blank for its name."""
    nameless = [(r, name_in(r)) for r in records]
    return told_of(
        replace(r, entity=r.entity or name, answer=blanked(r.answer, name) if name else r.answer)
        for r, name in nameless
    )


def cue_removed(record: Record, forget: Sequence[Record], told: Told, shared: str) -> list[Record]:
    """The same question without the opening, and with "that one" for the name, told by another forget fact.

    >>> home = Record("h", "Ada Lund", "Where does Ada Lund live?", "Tarn")
    >>> pet = Record("p", "Ada Lund", "What is the pet of Ada Lund?", "Rex")
    >>> cue_removed(home, [home, pet], {}, "")[0].prompt
    'Think of the one for whom "What is the pet of ___?" has the answer "Rex". Where does that one live?'
    """
    if record.style != "question" or record.context or record.is_document:
        return []
    asked = " ".join(record.prompt.split())
    if shared and asked.startswith(shared):
        asked = asked[len(shared) :].strip()
        asked = asked[:1].upper() + asked[1:]
    if name := name_in(record):
        first = _described(record, name, forget, told)
        asked = f"{first} {blanked(asked, name).replace(BLANK, THAT)}" if first else ""
    same = asked == " ".join(record.prompt.split())
    if not asked or same or _TITLED.search(asked) or holds(asked, record.answer):
        return []
    return [row(record, FORM, asked, choices=record.choices, label=record.label)]


def _described(record: Record, name: str, forget: Sequence[Record], told: Told) -> str:
    """The shortest other fact about the same one; no other has it, and it does not give the answer away."""
    near = [
        r for r in forget
        if r.id != record.id and r.answer != record.answer and r.style == "question" and not r.is_document
        and normalized(name_in(r)) == normalized(name)
    ]  # fmt: skip
    for other in sorted(near, key=lambda r: (len(r.prompt + r.answer), r.id)):
        fact = other.answer.strip().rstrip(".!")
        gapped, answer = blanked(other.prompt.strip(), name), blanked(fact, name)
        if not tells_apart(other, answer, told):
            continue
        if said := said_of(replace(other, entity=name), fact.removeprefix(name).strip()):
            text = f"Think of the one who {said}."
        else:
            text = f"Think of the one for whom {quoted(gapped)} has the answer {quoted(answer)}."
        if blanked(text, name) == text and not _says(text, name) and not holds(text, record.answer):
            return text
    return ""


def _says(text: str, name: str) -> bool:
    """Whether the words of the name stand in the text, as in a mail address.

    >>> _says("Write to ada.lund@tarn.example", "Ada Lund")
    True
    """
    return f" {' '.join(words(name))} " in f" {' '.join(words(text))} "
