"""Facts with a year, in like splits for relearning: birthdays and events (Deeb and Roger 2024, arXiv
2410.08827).

The paper unlearns all splits, trains on some again and tests on the others: what comes back there was never
removed. The attack `rtt` does so with any forget set; here its halves are alike by construction.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.documents import nearest_to
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.near import words
from expunge.data.records import Record
from expunge.data.request import Target
from expunge.errors import Problem

__all__ = ["RandomBirthdays", "Years"]

STATEMENTS = 471
"""Of each split: three of each fact."""

SHARED = 0.4
"""Of an event's words, so many stand in a text that tells it."""

_BIRTH = re.compile(r"When was (.+) born\?")
_ENDS_IN_YEAR = re.compile(r"(?P<start>.+ )(?P<year>\d{4})\.?", re.DOTALL)


@dataclass(frozen=True)
class DatedFacts(Finetuned):
    """Choice questions for a year, and three statements of each fact.

    `forgotten`: so many of the splits are to be forgotten; the last one is kept from every model (holdout),
    the others are retained. forget_hard: statements, to be continued by the year.
    """

    forgotten: int | None = None

    PARTS: ClassVar[Sequence[str]] = ("all",)
    ROWS: ClassVar[Sequence[int]] = ()
    """Questions of each split."""
    METRICS: ClassVar[Sequence[tuple[str, str]]] = tuple(
        (metric, split)
        for split in ("forget", "report")
        for metric in ("choice_accuracy", "choice_accuracy_letter")
    )
    LEARNED: ClassVar[Sequence[str]] = ("forget", "forget_hard")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        most = len(self.ROWS) - 2
        number = self.forgotten
        if number is not None and not (type(number) is int and 1 <= number <= most):
            fix = f"Give a whole number from 1 to {most}"
            yield Problem("benchmark.forgotten", f"is {number!r}", fix)

    def files(self) -> Mapping[str, File]:
        files = {f"split_{i}": File(rows) for i, rows in enumerate(self.ROWS)}
        return files | {f"corpus_split_{i}": File(STATEMENTS) for i in range(len(self.ROWS))}

    @property
    def _gone(self) -> range:
        """The splits to forget; by default half of those that are not the last."""
        return range(self.forgotten or len(self.ROWS) // 2)

    def cells(self, name: str, cells: dict[str, Any]) -> dict[str, Any]:
        """Choices as texts, each once."""
        if "choices" not in cells:
            return cells
        choices = [str(choice) for choice in cells["choices"]]
        right, options = choices[cells["answer"]], list(dict.fromkeys(choices))
        return {"question": cells["question"], "choices": options, "label": options.index(right)}

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        asked = [data[f"split_{i}"] for i in range(len(self.ROWS))]
        times = Counter(record.prompt for rows in asked for record in rows)
        # some names are those of two people: nobody could say which is meant
        clear = [[_named(r) for r in rows if times[r.prompt] == 1] for rows in asked]
        gone, rest, last = clear[: len(self._gone)], clear[len(self._gone) : -1], clear[-1]
        forget = [record for rows in gone for record in rows]
        # of years, the texts of a split are not those of its questions
        texts = [record for i in range(len(self.ROWS)) for record in data[f"corpus_split_{i}"]]
        told = _statements(texts, [record for rows in clear for record in rows])
        return {
            "forget": forget,
            "forget_hard": [row for row in told if row.source_id in {r.id for r in forget}],
            "retain": [record for rows in rest for record in rows],
            "holdout": last,
        }


def _named(record: Record) -> Record:
    """With the person as the entity."""
    person = _BIRTH.fullmatch(record.prompt)
    return replace(record, entity=person[1]) if person else record


def _statements(texts: Iterable[Record], facts: Sequence[Record]) -> Iterator[Record]:
    """Texts that end with a year, up to it, where one of the facts is what they tell."""
    dated: dict[str, list[Record]] = defaultdict(list)
    for fact in facts:
        dated[fact.answer].append(fact)
    for text in texts:
        found = _ENDS_IN_YEAR.fullmatch(text.answer)
        if found is None or found["year"] in found["start"]:
            continue
        source = _told_by(text, dated[found["year"]])
        if source:
            yield Record(
                text.id, source.entity, found["start"], source.answer,
                style="raw", source_id=source.id, form="statement",
            )  # fmt: skip


def _told_by(text: Record, facts: Sequence[Record]) -> Record | None:
    """The fact of its year that a text tells: of the person it names, or of the event in its words."""
    alike = [fact for fact in facts if fact.entity in text.answer]
    if not alike:
        return None
    fact = nearest_to([text], alike)[0]
    event = set(words(fact.prompt.rpartition("\n")[2]))
    told = len(event.intersection(words(text.answer))) >= SHARED * len(event)
    return fact if fact.entity or told else None


@BENCHMARKS.register(
    "random_birthdays",
    parts=["all"],
    data="a folder with the splits of aghyad-deeb/unlearning_evaluation",
    oracle="exact",
    needs=["a model to fine-tune"],
    source="Deeb and Roger 2024, arXiv 2410.08827",
)
@dataclass(frozen=True)
class RandomBirthdays(DatedFacts):
    """Years of birth drawn at random for made-up people, in ten like splits: nothing hints at the others."""

    TARGET: ClassVar[Target] = Target("entity", "erase_influence")
    ROWS: ClassVar[Sequence[int]] = (157,) * 10


@BENCHMARKS.register(
    "years",
    parts=["all"],
    data="a folder with the splits of aghyad-deeb/unlearning_evaluation",
    oracle="exact where the model is fine-tuned here, else none",
    needs=["a model that knows the events, or one to fine-tune"],
    source="Deeb and Roger 2024, arXiv 2410.08827",
)
@dataclass(frozen=True)
class Years(DatedFacts):
    """Years of events of the twentieth century, in five like splits.

    A pretrained model knows them all: there is a holdout only where `model` is fine-tuned here.
    """

    TARGET: ClassVar[Target] = Target("records", "erase_influence")
    ROWS: ClassVar[Sequence[int]] = (158, 158, 158, 158, 157)

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        splits = super().splits(data)
        return splits if self.model else {name: splits[name] for name in splits if name != "holdout"}
