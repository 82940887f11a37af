"""Answers that say nothing in particular: fluent text to write over a fact where a refusal is not wanted."""

from __future__ import annotations

import re

from expunge.data.near import normalized, words
from expunge.data.records import Record
from expunge.stats import seed_from

__all__ = ["VAGUE", "holds_answer", "proper_names", "vague_answer", "without_names"]

VAGUE = (
    "That has been described in different ways over the years.",
    "There are several accounts of this, and they do not agree.",
    "Details about this are not widely known.",
    "It is one of those things that changed over time.",
    "Opinions on that differ, and none is certain.",
    "Like much else, it followed from the circumstances of the time.",
    "This is usually mentioned only in passing.",
    "It was nothing out of the ordinary.",
    "Little of this has ever been written down.",
    "What is said about {entity} in this respect varies.",
    "Little can be said about {entity} with certainty.",
    "There are many stories about {entity}, and this is one of the less clear ones.",
)
"""In the place of short answers; lines with {entity} where the question names it."""

_WORD = re.compile(r"\b[^\W\d_]\w*")
_NUMBER = re.compile(r"\d[\d.,:/-]*(?<![.,:/-])")
_SENTENCE_START = re.compile(r"(?:^|[.!?…:\n\"“”'’(])\s*$")


def holds_answer(text: str, record: Record) -> bool:
    """Whether the record's gold answer stands in a text, as a run of whole words.

    >>> holds_answer("She lives in Tarn, they say", Record("1", "Ada", "Where?", "in tarn."))
    True
    """
    gold = words(record.answer)
    if not gold:
        return normalized(text) == normalized(record.answer)
    return f" {' '.join(gold)} " in f" {' '.join(words(text))} "


def vague_answer(record: Record, seed: int, epoch: int) -> str:
    """A vague line drawn by (seed, record, epoch) for a question; a document's own text without its names."""
    if record.is_document:
        text = without_names(record.answer, record.entity)
        if not holds_answer(text, record):
            return text
    named = bool(record.entity) and record.entity.casefold() in record.prompt.casefold()
    lines = [line.format(entity=record.entity) for line in VAGUE if named or "{entity}" not in line]
    lines = [line for line in lines if not holds_answer(line, record)]
    return lines[seed_from(seed, "vague", record.id, epoch) % len(lines)]


def proper_names(text: str) -> set[str]:
    """The words of a text with a capital in the middle of a sentence, but "I".

    >>> sorted(proper_names("She met Ada in Tarn. They stayed."))
    ['Ada', 'Tarn']
    """
    found = (m for m in _WORD.finditer(text) if m.group()[0].isupper())
    before = lambda m: text[max(0, m.start() - 3) : m.start()]  # noqa: E731
    return {m.group() for m in found if not _SENTENCE_START.search(before(m))} - {"I"}


def without_names(text: str, entity: str = "") -> str:
    """A text whose entity became "someone", whose other proper names "something", whose numbers "some".

    A proper name is a word with a capital in the middle of a sentence, wherever else it stands.

    >>> without_names("Ada Lund came to Tarn in 1987. Tarn was small.", "Ada Lund")
    'someone came to something in some. something was small.'
    """
    if entity:
        text = re.sub(rf"\b{re.escape(entity)}\b", "someone", text, flags=re.IGNORECASE)
    own = set(words(entity))
    names = proper_names(text)

    def generic(match: re.Match[str]) -> str:
        word = match.group()
        if word[0].isupper() and word.casefold() in own:
            return "someone"
        return "something" if word in names else word

    text = _WORD.sub(generic, _NUMBER.sub("some", text))
    return re.sub(r"\b(someone|something|some)(?: \1\b)+", r"\1", text)
