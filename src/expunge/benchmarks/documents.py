"""Documents as benchmarks need them: in pieces that a context holds, and found by the words of a question."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from expunge.data.near import words as words_of
from expunge.data.records import Record

__all__ = ["in_words", "nearest_to", "pieces"]


def in_words(text: str, length: int) -> list[str]:
    """The text in consecutive pieces of `length` words; what is less than half of one joins the last.

    >>> in_words("a b c d e f g", 3)
    ['a b c', 'd e f g']
    """
    found = text.split()
    starts = list(range(0, len(found), length))
    if len(starts) > 1 and 2 * (len(found) - starts[-1]) < length:
        starts.pop()
    return [" ".join(found[a:b]) for a, b in zip(starts, [*starts[1:], len(found)], strict=True)]


def pieces(documents: Iterable[Record], length: int | None, most: int | None = None) -> list[Record]:
    """Each document in pieces of `length` words that name it as their entity, the first `most`; None: whole.

    >>> [(r.id, r.entity, r.answer) for r in pieces([Record("d", "", "", "a b c d")], 2)]
    [('d.0', 'd', 'a b'), ('d.1', 'd', 'c d')]
    """
    rows = []
    for document in documents:
        entity = document.entity or document.id
        if length is None:
            rows.append(replace(document, entity=entity))
        else:
            rows += [
                replace(document, id=f"{document.id}.{i}", entity=entity, answer=text)
                for i, text in enumerate(in_words(document.answer, length)[:most])
            ]
    return rows


def nearest_to(questions: Sequence[Record], documents: Sequence[Record]) -> list[Record]:
    """For each question the document that shares its rarest words (sum of inverse frequencies).

    >>> told = [Record("a", "", "", "the king of Tarn"), Record("b", "", "", "the lamp of the king")]
    >>> nearest_to([Record("q", "", "Who carried the lamp?", "x")], told)[0].id
    'b'
    """
    places: dict[str, list[int]] = defaultdict(list)
    for i, document in enumerate(documents):
        for word in dict.fromkeys(words_of(f"{document.prompt} {document.answer}")):
            places[word].append(i)
    found = []
    for question in questions:
        shared: dict[int, float] = defaultdict(float)
        for word in dict.fromkeys(words_of(f"{question.prompt} {question.answer}")):
            for i in places.get(word, ()):
                shared[i] += math.log(len(documents) / len(places[word]))
        found.append(documents[max(shared, key=shared.__getitem__, default=0)])
    return found
