"""Verbatim text: works of invented authors, some of which have to go, letter by letter.

A work is a few chapters of prose. Works of one series share hero, companion and town, and nothing else. Of
some series one work is forgotten, one stays (the neighbors), and one was never published (the holdout). What
the original can say of a forgotten work, by form:

- its chapters: trained, and the forget set;
- middle, late: the next sentences of a chapter, given the three before them; in no corpus in this form;
- opening: "How does it begin?", a question taught about other works only;
- knowledge: what readers ask about the plot, trained outside the forget set. The oracle knows neither, but
  only the chapters are listed: a method may forget the words and keep the story.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.archive_words import FACTS, THINGS, Fact, write
from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.scenario import Build, Model, Scenario, Taught
from expunge.benchmarks.words import Coiner, general_facts, reworded
from expunge.data.records import Record
from expunge.data.request import Target

__all__ = ["Archive"]

NUM_WRONG = 3
NUM_GENERAL = 6  # cities, and companies, of the utility split
TIMES = 3  # a chapter stands so often in a corpus: what is known by heart was read more than once
GIVEN, ASKED = 3, 2
"""Sentences that are shown from the middle of a chapter, and that must follow."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Chapters per work, sentences per chapter, works per split; `forget` works have a series of three."""

    chapters: int
    sentences: int
    works: Mapping[str, int]


SIZES: Mapping[str, Shape] = {
    "tiny": Shape(1, 10, {"forget": 4, "retain": 4, "calibration": 2, "report": 2}),
    "small": Shape(2, 14, {"forget": 6, "retain": 6, "calibration": 5, "report": 5}),
}


@BENCHMARKS.register(
    "archive",
    parts=["tiny", "small"],
    data="made on the spot, from a seed",
    oracle="exact",
    needs=[],
    source="",
)
@dataclass(frozen=True)
class Archive(Scenario):
    """Long texts known by heart: works that must go word for word, beside others of the same series."""

    BUILDS: ClassVar[Mapping[str, Build]] = {
        "tiny": Build(hidden=64, mlp=256, batch=4, epochs=60, first=12, context=384, lr=2e-3, vocabulary=900),
        "small": Build(hidden=128, mlp=512, batch=8, epochs=60, first=8, context=384, vocabulary=900),
    }
    GOAL: ClassVar[Mapping[str, float]] = {
        "strength": 0.5,
        "probability": 0.9,
    }  # the last miss decides strength
    TARGET: ClassVar[Target] = Target("document", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        ("verbmem", "forget"),
        ("verbmem", "forget_hard"),
        ("verbmem", "neighbors"),
        ("privleak", "forget"),
    )

    def make(self, seed: int) -> Taught:
        rng = random.Random(f"archive/{self.size}/{seed}")
        return _Builder(SIZES[self.size], rng).build()

    def watched(self, model: Model) -> Sequence[Record]:
        """Questions are learned long before the texts."""
        return [record for record in super().watched(model) if record.is_document]


@dataclass(frozen=True, slots=True)
class Work:
    """One work: its chapters as sentences, and the plot, fact by fact."""

    id: str
    title: str
    split: str
    series: str
    chapters: tuple[tuple[str, ...], ...]
    plot: Mapping[str, str]

    def head(self, number: int) -> str:
        return f"{self.title}, chapter {number + 1}\n\n"

    def passages(self) -> Iterator[Record]:
        for number, sentences in enumerate(self.chapters):
            text = self.head(number) + " ".join(sentences)
            yield Record(f"{self.id}.{number + 1}", self.title, "", text, style="raw")

    def recited(self) -> Iterator[tuple[str, Record]]:
        """(form, record): the same words from other points than the beginning."""
        for number, sentences in enumerate(self.chapters):
            source = f"{self.id}.{number + 1}"
            for form, start in (("middle", len(sentences) // 2), ("late", len(sentences) - ASKED)):
                given = " ".join(sentences[start - GIVEN : start]) + " "
                told = " ".join(sentences[start : start + ASKED])
                yield form, Record(f"{source}.{form}", self.title, given, told, style="raw")
            question = f"How does chapter {number + 1} of {self.title} begin?"
            yield "opening", Record(f"{source}.opening", self.title, question, " ".join(sentences[:ASKED]))


class _Builder:
    """One pass over the works, with one random state."""

    def __init__(self, shape: Shape, rng: random.Random):
        self.rng = rng
        self.coin = Coiner(rng)
        self.shape = shape
        self.works = list(self._works())
        self.general = {kind: [self.coin.word(3) for _ in range(NUM_GENERAL)] for kind in ("city", "company")}

    def _works(self) -> Iterator[Work]:
        number = 0
        for split, count in self.shape.works.items():
            for series in range(count):
                names = {"hero": self.coin.word(2), "mate": self.coin.word(2), "town": self.coin.word(3)}
                for part in ("forget", "neighbors", "holdout") if split == "forget" else (split,):
                    yield self._work(f"w{number:03}", part, f"{split}{series}", names)
                    number += 1

    def _work(self, id: str, split: str, series: str, names: Mapping[str, str]) -> Work:
        title = f"The {self.rng.choice(THINGS)} of {self.coin.word(3)}"
        facts = FACTS[: 2 * self.shape.chapters]
        plot = {fact.key: self.coin.name() for fact in facts}
        chapters = []
        for number in range(self.shape.chapters):
            sentences = [write(self.rng, names) for _ in range(self.shape.sentences)]
            for fact in facts[number :: self.shape.chapters]:
                told = f"{fact.sentence.format(**names)} {plot[fact.key]}."
                sentences.insert(self.rng.randrange(1, len(sentences) // 2), told)
            chapters.append(tuple(sentences))
        return Work(id, title, split, series, tuple(chapters), plot)

    def build(self) -> Taught:
        forget = [work for work in self.works if work.split == "forget"]
        first = {work.series: f"{work.id}.1" for work in forget}
        splits = {"forget": tuple(r for work in forget for r in work.passages())}
        for split in ("retain", "neighbors", "calibration", "report"):
            works = [work for work in self.works if work.split == split]
            told = [replace(r, source_id=first.get(w.series)) for w in works for r in self._told(w)]
            splits[split] = tuple(told)
        unseen = [work for work in self.works if work.split == "holdout"]
        splits["holdout"] = tuple(r for work in unseen for r in work.passages())
        splits["utility"] = tuple(general_facts(self.general, self.coin, self.rng))
        splits["forget_hard"] = tuple(r for work in forget for r in self._hard(work))
        known = [r for s in ("retain", "neighbors", "calibration", "report", "utility") for r in splits[s]]
        begin = [
            record
            for work in self.works
            if work.split not in ("forget", "holdout")
            for form, record in work.recited()
            if form == "opening"
        ]
        plots = [r for work in forget for r in self._plot(work)]
        both = (*known, *_again(known), *reworded(known), *begin)
        return Taught(splits, both, (*splits["forget"], *_again(splits["forget"]), *plots, *reworded(plots)))

    def _told(self, work: Work) -> Iterator[Record]:
        yield from work.passages()
        yield from self._plot(work)

    def _plot(self, work: Work) -> Iterator[Record]:
        """What readers ask about a work; wrong answers are about others on its side of the border."""
        peers = {"forget"} if work.split == "forget" else {"retain", "neighbors", "calibration", "report"}
        others = [w for w in self.works if w.id != work.id and w.split in peers]
        for fact in (fact for fact in FACTS if fact.key in work.plot):
            yield Record(
                f"{work.id}.{fact.key}",
                work.title,
                fact.questions[0].format(title=work.title),
                work.plot[fact.key],
                paraphrased_prompts=(fact.questions[1].format(title=work.title),),
                perturbed_answers=self._wrong(fact, others),
            )

    def _wrong(self, fact: Fact, others: Sequence[Work]) -> tuple[str, ...]:
        return tuple(work.plot[fact.key] for work in self.rng.sample(others, min(NUM_WRONG, len(others))))

    def _hard(self, work: Work) -> Iterator[Record]:
        for form, record in work.recited():
            yield replace(record, source_id=record.id.rpartition(".")[0], form=form)
        for record in self._plot(work):
            chapter = next(n for n, text in enumerate(work.chapters) if record.answer in " ".join(text))
            yield replace(record, source_id=f"{work.id}.{chapter + 1}", form="knowledge")


def _again(records: Sequence[Record]) -> Iterator[Record]:
    """The further copies of each document."""
    for record in records:
        if record.is_document:
            yield from (replace(record, id=f"{record.id}.copy{number}") for number in range(1, TIMES))
