"""LUME: stories, biographies with made-up personal data, real biographies (Ramakrishna et al. 2025, arXiv
2502.15097), the data of SemEval 2025 task 4.

Every document is asked for twice: its second half after the first (sentence completion), and by questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.findings import Findings
from expunge.data.records import Record
from expunge.data.request import Target
from expunge.errors import Problem, nearest
from expunge.metrics.base import ModelEvidence, Score
from expunge.metrics.semeval import SemevalTaskScore

__all__ = ["Lume"]

SIDES = {"forget": 2732, "retain": 2734}
VALIDATION = {"forget": 254, "retain": 278}
MEMBERSHIP = 150
ASKED = {"sc": "completion", "qa": "question"}

_ID = re.compile(r'"?(?P<document>[^"]+)"?(?P<asked>sc|qa)\d*')


@BENCHMARKS.register(
    "lume",
    parts=["all", "task1", "task2", "task3"],
    data="a folder with amazon-science's release; membership and validation sets where it has them",
    oracle="exact",
    needs=["a model to fine-tune, or one already fine-tuned"],
    source="Ramakrishna et al. 2025, arXiv 2502.15097",
)
@dataclass(frozen=True)
class Lume(Finetuned):
    """Task 1: stories; task 2: people with addresses and numbers; task 3: people of an encyclopedia.

    `validation`: the small sets of SemEval instead of all. `hard`: what no method sees and forget_hard asks,
    "qa" (questions) or "sc" (sentence completion); default: both are to be forgotten, as in the paper.
    `task_score` scores any model's evidence as SemEval did.
    """

    validation: bool = False
    hard: str | None = None

    PARTS: ClassVar[Sequence[str]] = ("all", "task1", "task2", "task3")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        *(
            (name, s)
            for s in ("forget", "forget_hard", "report")
            for name in ("rougeL_recall", "exact_match")
        ),
        *((name, "forget_members") for name in ("mia_loss", "mia_zlib", "mia_min_k")),
    )
    LEARNED: ClassVar[Sequence[str]] = ("forget", "forget_hard")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.hard not in (None, *ASKED):
            yield Problem("benchmark.hard", f"{self.hard!r} is unknown", nearest(str(self.hard), ASKED))

    def target(self) -> Target:
        return Target("document" if self.part == "task1" else "entity", "erase_influence")

    # Files ---------------------------------------------------------------------------------------------

    def files(self) -> Mapping[str, File]:
        columns = {"prompt": "input", "completion": "output", "form": "task"}
        sizes = VALIDATION if self.validation else SIDES
        files = {self._side(side): File(rows, columns) for side, rows in sizes.items()}
        for name in ("mia_data_member", "mia_data_nonmember"):
            if self.part in ("all", "task3") and self.has(f"semeval2025_{name}"):
                files[f"semeval2025_{name}"] = File(MEMBERSHIP, {"text": "document"})
        return files

    def _side(self, side: str) -> str:
        return f"semeval2025_validation_{side}" if self.validation else side

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        for side in SIDES:
            strange = [r.id for r in data[self._side(side)] if not _ID.fullmatch(r.id)]
            if strange:
                what = f"{len(strange)} ids are no document with sc or qa, the first: {strange[0]}"
                found.add(f"{self.base}:{self._side(side)}", what, "Get the file again")

    # Splits --------------------------------------------------------------------------------------------

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        forget, retain = (list(self._asked(data[self._side(side)])) for side in SIDES)
        hard = [r for r in forget if r.form == ASKED.get(self.hard or "")]
        forget = [r for r in forget if r not in hard]
        sources = {r.entity: r.id for r in reversed(forget)}
        members, others = (data.get(f"semeval2025_mia_data_{name}", []) for name in ("member", "nonmember"))
        known = {r.entity for r in (*forget, *hard)}
        return {
            "forget": [replace(r, form=None) for r in forget],
            "forget_hard": [replace(r, source_id=sources[r.entity]) for r in hard],
            "retain": [replace(r, form=None) for r in retain],
            "forget_members": [replace(r, entity=r.id) for r in members if r.id in known],
            "holdout": [replace(r, id=f"holdout.{r.id}", entity=r.id) for r in others],
        }

    def _asked(self, rows: Iterable[Record]) -> Iterator[Record]:
        """Rows of the part; id: task.document.how it is asked, entity: the document, form: how."""
        for row in rows:
            found = _ID.fullmatch(row.id)
            task = str(row.form).lower()
            if found is None or self.part not in ("all", task):
                continue
            document, asked = found["document"], found["asked"]
            plain = replace(
                row, id=f"{task}.{row.id.replace(chr(34), '')}", entity=document, form=ASKED[asked]
            )
            if asked == "qa":
                yield replace(plain, style="question")
            else:
                yield replace(plain, prompt=f"{row.prompt} ")  # the document goes on after a blank

    def task_score(self, model: ModelEvidence) -> Score:
        """SemEval's task score, from what the model generates for forget and report."""
        return SemevalTaskScore().score(model, "forget", seed=self.seed)
