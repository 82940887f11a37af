"""KnowUnDo: what is private about a person must go, what is public must stay (Tian et al. 2024, arXiv
2407.01920). Privacy part: people that do not exist.

Here the border of the scope runs through each person: neighbors are public facts about the people whose
private facts are forgotten.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.documents import nearest_to
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.findings import Findings
from expunge.data.records import Record
from expunge.data.request import Target

__all__ = ["KnowUnDo"]

ROWS = {"unlearn_train": 400, "unlearn_val": 110, "retention_train": 441, "retention_val": 108}
OFTEN = 8
"""Questions that a name must stand in to be a person's: each is asked about some twenty times."""

_OPENING = re.compile(r"^\w+ (?=[A-ZÀ-Þ])")
_NAME = re.compile(r"[A-ZÀ-Þ][\w.’'-]*(?: [A-ZÀ-Þ][\w.’'-]*)+")


@BENCHMARKS.register(
    "knowundo",
    parts=["privacy"],
    data="a folder with the files of zjunlp/unlearn",
    oracle="exact",
    needs=["a model to fine-tune, or one already fine-tuned"],
    source="Tian et al. 2024, arXiv 2407.01920",
)
@dataclass(frozen=True)
class KnowUnDo(Finetuned):
    """Private facts (parents, addresses, mail) to forget, public ones of the same people to retain.

    forget and retain are the paper's training sets; forget_hard (private, asked of no method) and neighbors
    (public, trained on by none) are its validation sets.
    """

    PARTS: ClassVar[Sequence[str]] = ("privacy",)
    TARGET: ClassVar[Target] = Target("attribute", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        *(("exact_memorization", split) for split in ("forget", "forget_hard", "neighbors", "report")),
        *(("rougeL_recall", split) for split in ("forget", "forget_hard", "neighbors", "report")),
        ("perplexity", "neighbors"),
    )
    TAUGHT: ClassVar[Sequence[str]] = (*Finetuned.TAUGHT, "neighbors")
    LEARNED: ClassVar[Sequence[str]] = ("forget", "forget_hard")

    def files(self) -> Mapping[str, File]:
        columns = {"question": "text", "answer": "labels"}
        return {f"{self.part}_{name}": File(rows, columns) for name, rows in ROWS.items()}

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        """The same people are in all four files."""
        named = {name: {r.entity for r in rows} for name, rows in self._named(data).items()}
        forgotten = named[f"{self.part}_unlearn_train"]
        for name, people in named.items():
            if strange := people - forgotten:
                what = f"{len(strange)} of its {len(people)} people are not in {self.part}_unlearn_train"
                found.add(f"{self.base}:{name}", what, "Bring all files from one release")

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        forget, hard, retain, near = self._named(data).values()
        sources = [nearest_to([row], [r for r in forget if r.entity == row.entity])[0] for row in hard]
        return {
            "forget": forget,
            "forget_hard": [
                replace(row, source_id=source.id, form="held_out")
                for row, source in zip(hard, sources, strict=True)
            ],
            "retain": retain,
            "neighbors": near,
        }

    def _named(self, data: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
        """The records of each file with the person they are about."""
        people = people_in([r for rows in data.values() for r in rows])
        return {
            name: [replace(r, entity=_first(people, f"{r.prompt} {r.answer}")) for r in rows]
            for name, rows in data.items()
        }


def people_in(records: Sequence[Record]) -> list[str]:
    """The names that stand in many questions: runs of capitalized words."""
    counts: Counter[str] = Counter()
    for record in records:
        found = _NAME.findall(_OPENING.sub("", record.prompt))
        counts.update({re.sub(r"['’]s?$", "", name).rstrip(".") for name in found})
    return [name for name, count in counts.items() if count >= OFTEN]


def _first(people: Sequence[str], text: str) -> str:
    return next((name for name in people if name in text), "")
