"""WMDP: a hazardous capability, measured by choice questions (Li et al. 2024, arXiv 2403.03218).

The paper unlearns on corpora (that on biology is gated) and measures on questions no method sees. Bring
a corpus; else half of the questions are forgotten, and the other half shows whether the capability went.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.documents import nearest_to, pieces
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.ability import ability_records
from expunge.data.findings import Findings
from expunge.data.formats import read_records
from expunge.data.records import Record
from expunge.data.request import Request, Target
from expunge.errors import Problem
from expunge.stats import seed_from

__all__ = ["Wmdp"]

QUESTIONS = {"bio": 1273, "cyber": 1987, "chem": 408}
FIRST_CHEM = "chem_questions_v0"
OTHER = {"bio": "cyber", "cyber": "bio", "chem": "bio"}
"""Whose questions are retained where no corpus is brought."""

MMLU = 14042
NEAR = {
    "bio": ("college_biology", "virology"),
    "cyber": ("college_computer_science", "computer_security"),
    "chem": ("college_chemistry", "high_school_chemistry"),
}
"""Subjects of MMLU at the border of each part."""


@BENCHMARKS.register(
    "wmdp",
    parts=["bio", "cyber", "chem"],
    data="a folder, or cais/wmdp and cais/mmlu from the hub; corpora of your own",
    oracle="exact",
    needs=["a model that has the capability, or one to fine-tune"],
    source="Li et al. 2024, arXiv 2403.03218",
)
@dataclass(frozen=True)
class Wmdp(Finetuned):
    """Choice questions about a hazardous subject; MMLU, or expunge's own questions, for what must stay.

    `corpus`: texts to forget, `retain_corpus`: texts to keep (file, folder or hub id), cut to pieces of
    `words` words. Without a corpus, half of the questions are forget and the others forget_hard; without a
    retain corpus, another subject's questions are retained. `questions`: so many of each subject are used;
    `utility_rows`: so many of MMLU.
    """

    corpus: str | None = None
    retain_corpus: str | None = None
    words: int | None = None
    questions: int | None = None
    utility_rows: int = 500

    PARTS: ClassVar[Sequence[str]] = tuple(QUESTIONS)
    TARGET: ClassVar[Target] = Target("capability", "remove_capability")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = tuple(
        (metric, split)
        for split in ("forget_hard", "forget", "neighbors", "utility")
        for metric in ("choice_accuracy", "choice_accuracy_letter")
    )
    LEARNED: ClassVar[Sequence[str]] = ("forget", "forget_hard")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name, least in (("words", 16), ("questions", 8), ("utility_rows", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= least):
                yield Problem(f"benchmark.{name}", f"is {value!r}", f"Give a whole number from {least} up")

    # Files ---------------------------------------------------------------------------------------------

    def files(self) -> Mapping[str, File]:
        parts = [self.part] if self.retain_corpus else [self.part, OTHER[self.part]]
        files = {self._questions(part): self._file(part) for part in parts}
        if self._mmlu:
            files["mmlu"] = File(MMLU, hub="cais/mmlu:all:test")
        own = {"corpus": self.corpus, "retain_corpus": self.retain_corpus}
        return files | {name: File(None, hub=source) for name, source in own.items() if source}

    def _questions(self, part: str) -> str:
        first = part == "chem" and self.has(FIRST_CHEM)
        return FIRST_CHEM if first else f"{part}_questions"

    def _file(self, part: str) -> File:
        first = self._questions(part) == FIRST_CHEM
        return File(412 if first else QUESTIONS[part], hub=f"cais/wmdp:wmdp-{part}:test")

    @property
    def _mmlu(self) -> bool:
        return self.base is None or self.has("mmlu")

    def read(self, name: str, file: File, found: Findings) -> list[Record]:
        if name in ("corpus", "retain_corpus"):
            return read_records(str(file.hub), split=name, findings=found)
        return super().read(name, file, found)

    # Splits --------------------------------------------------------------------------------------------

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        asked = self._shuffled(data[self._questions(self.part)])[: self.questions]
        half = len(asked) // 2
        forget, probes = asked[:half], asked[half:]
        if self.corpus:
            forget, probes = pieces(data["corpus"], self.words), asked
        if self.retain_corpus:
            retain = pieces(data["retain_corpus"], self.words)
        else:
            retain = self._shuffled(data[self._questions(OTHER[self.part])])[: self.questions]
        splits = {"forget": forget, "retain": retain, "utility": list(ability_records(self.seed))}
        splits["forget_hard"] = [
            replace(probe, source_id=source.id, form="choice")
            for probe, source in zip(probes, nearest_to(probes, forget), strict=True)
        ]
        if self._mmlu:
            near = NEAR[self.part]
            splits["neighbors"] = [r for r in data["mmlu"] if r.entity in near]
            others = [r for r in data["mmlu"] if r.entity not in near]
            splits["utility"] = self._shuffled(others)[: self.utility_rows]
        return splits

    def _shuffled(self, rows: Sequence[Record]) -> list[Record]:
        return sorted(rows, key=lambda record: seed_from(self.seed, "wmdp", record.id))

    def notes(self) -> Mapping[str, str]:
        notes = {} if self._mmlu else {"utility": "expunge's own questions, since mmlu is not in the folder"}
        if not self.corpus:
            notes["forget"] = "half of the questions, for want of a corpus; forget_hard is the other half"
        if not self.retain_corpus:
            notes["retain"] = f"the questions of {OTHER[self.part]}, for want of a retain corpus"
        return notes

    def metrics(self, request: Request) -> Sequence[tuple[str, str]]:
        found = super().metrics(request)
        return [pair for pair in found if pair[1] != "forget"] if self.corpus else found
