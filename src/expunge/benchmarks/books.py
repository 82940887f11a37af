"""Books in the public domain, to be forgotten word for word, as MUSE does with novels under copyright
(Shi et al. 2024, arXiv 2407.06460).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.documents import in_words
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.findings import Findings
from expunge.data.records import Record
from expunge.data.request import Target
from expunge.errors import Problem

__all__ = ["Books"]

PARAGRAPHS = {
    "alice_in_wonderland": 831,
    "through_the_looking_glass": 983,
    "wizard_of_oz": 1166,
    "marvelous_land_of_oz": 2101,
    "time_machine": 363,
    "wind_in_the_willows": 950,
    "sherlock_holmes_adventures": 2554,
    "pride_and_prejudice": 2187,
}
SAME_AUTHOR = {
    "alice_in_wonderland": "through_the_looking_glass",
    "through_the_looking_glass": "alice_in_wonderland",
    "wizard_of_oz": "marvelous_land_of_oz",
    "marvelous_land_of_oz": "wizard_of_oz",
}
FRONT = 0.05
"""The share of a book that may be title, contents and preface: left out."""

CLOSING = 0.8
"""Where the chapters begin that no model is trained on."""


@BENCHMARKS.register(
    "books",
    parts=[
        "alice_in_wonderland",
        "through_the_looking_glass",
        "wizard_of_oz",
        "marvelous_land_of_oz",
        "time_machine",
        "wind_in_the_willows",
        "sherlock_holmes_adventures",
        "pride_and_prejudice",
    ],
    data="a folder of texts of Project Gutenberg, header and footer removed",
    oracle="exact",
    needs=["a model to fine-tune, or one that knows the book"],
    source="the verbatim task of Shi et al. 2024, arXiv 2407.06460",
)
@dataclass(frozen=True)
class Books(Finetuned):
    """Passages of one book to forget, of others to keep; its closing chapters were never read.

    `passages` of `words` words, spread evenly, are taken of each book. forget_hard begins a forget passage
    and asks how it goes on; neighbors are of another book by the same author, where there is one.
    """

    passages: int = 40
    words: int = 100

    PARTS: ClassVar[Sequence[str]] = tuple(PARAGRAPHS)
    TARGET: ClassVar[Target] = Target("document", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        ("verbmem", "forget"),
        ("verbmem", "forget_hard"),
        ("privleak", "forget"),
        ("verbmem", "neighbors"),
        ("verbmem", "report"),
    )
    TAUGHT: ClassVar[Sequence[str]] = (*Finetuned.TAUGHT, "neighbors")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name, least in (("passages", 2), ("words", 16)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                yield Problem(f"benchmark.{name}", f"is {value!r}", f"Give a whole number from {least} up")

    def files(self) -> Mapping[str, File]:
        return {f"gutenberg_{book}": File(paragraphs) for book, paragraphs in PARAGRAPHS.items()}

    def read(self, name: str, file: File, found: Findings) -> list[Record]:
        """The paragraphs of a book: what stands between blank lines."""
        path = Path(str(self.base)) / f"{name}.txt"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            found.add(
                str(path), f"cannot be read: {why}", "Bring the text of the book as a file of that name"
            )
            return []
        return [Record(f"{name}-{i}", name, "", part, "raw") for i, part in enumerate(text.split("\n\n"))]

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        """There are as many passages as are wanted."""
        for book in PARAGRAPHS:
            there = len(self._spread(book, CLOSING, 1.0, data))
            if there < self.passages:
                fix = f"Lower benchmark.passages to {there}, or benchmark.words"
                found.add(f"gutenberg_{book}", f"its last chapters have {there} passages", fix)

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        neighbor = SAME_AUTHOR.get(self.part)
        others = [book for book in PARAGRAPHS if book not in (self.part, neighbor)]
        forget = self._spread(self.part, FRONT, CLOSING, data)
        kept = [self._spread(book, FRONT, CLOSING, data) for book in others]
        return {
            "forget": forget,
            "forget_hard": [_half(record) for record in forget],
            "retain": [record for one_of_each in zip(*kept, strict=True) for record in one_of_each],
            "holdout": self._spread(self.part, CLOSING, 1.0, data),
            "neighbors": self._spread(neighbor, FRONT, CLOSING, data) if neighbor else [],
        }

    def _spread(self, book: str, start: float, stop: float, data: Mapping[str, list[Record]]) -> list[Record]:
        """Passages spread evenly over a part of a book, each its own entity: far apart, they differ."""
        text = " ".join(paragraph.answer for paragraph in data[f"gutenberg_{book}"])
        rows = list(enumerate(in_words(text, self.words)))
        rows = rows[round(start * len(rows)) : round(stop * len(rows))]
        number = min(self.passages, len(rows))
        chosen = [rows[i * len(rows) // number] for i in range(number)]
        return [Record(f"{book}-{i}", f"{book}-{i}", "", passage, "raw") for i, passage in chosen]


def _half(record: Record) -> Record:
    """The second half of a passage, asked for by its first."""
    words = record.answer.split()
    half = len(words) // 2
    prompt, answer = " ".join(words[:half]) + " ", " ".join(words[half:])
    return Record(
        f"{record.id}.verbatim", record.entity, prompt, answer, "raw", source_id=record.id, form="verbatim"
    )
