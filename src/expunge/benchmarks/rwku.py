"""RWKU: famous people that a pretrained model knows (Jin et al. 2024, arXiv 2406.10890).

Probes of a person in three levels: cloze, questions, and nine kinds of adversarial questions, which are the
paper's prompt attacks and stand in forget_hard by their kind. Neighbors are what the person is linked to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.documents import nearest_to
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.checks import text_key
from expunge.data.findings import Findings
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Target
from expunge.errors import Problem, nearest
from expunge.stats import seed_from

__all__ = ["Rwku"]

HUB = "jinzhuoran/RWKU"
FORGET = {"forget_level1": 3268, "forget_level2": 2879, "forget_level3": 6984}
NEIGHBORS = {"neighbor_level1": 5846, "neighbor_level2": 5533}
FIRST = "1_Stephen_King"
MORE = {
    "passage": "train_original_passage:train",
    "forget_mia": "mia_forget:test",
    "retain_mia": "mia_retain:test",
    "truthful": "utility_truthfulness:test",
}
"""What is counted by person, and in a folder only of some: file → where the hub has that of all."""

COUNTS = {FIRST: {"passage": 128, "forget_mia": 55, "retain_mia": 37, "truthful": 50}}
FORMS = {"reverse query": "reverse", "simple question": "question"}
SOURCES = ("probes", "passages")


@BENCHMARKS.register(
    "rwku",
    parts=["1_Stephen_King", "or any other of the 200 people"],
    data="a folder, or jinzhuoran/RWKU from the hub",
    oracle="exact where the model is fine-tuned here, else none",
    needs=["a model that knows the person, or one to fine-tune"],
    source="Jin et al. 2024, arXiv 2406.10890",
)
@dataclass(frozen=True)
class Rwku(Finetuned):
    """A person to forget; `targets`: so many, the part's and those that follow.

    `forget_on`: what the method is given, "probes" (cloze and questions) or "passages" (texts about the
    person, no probe; all three levels are then forget_hard). The paper has no retain set: cloze and questions
    about `others` further people are retained.
    """

    targets: int = 1
    others: int = 20
    forget_on: str = "probes"

    PARTS: ClassVar[Sequence[str]] = (FIRST,)
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        *(("rougeL_recall", split) for split in ("forget", "forget_hard", "neighbors")),
        *(("nll", split) for split in ("forget_mia", "retain_mia")),
        ("choice_accuracy", "utility"),
    )
    TAUGHT: ClassVar[Sequence[str]] = (*Finetuned.TAUGHT, "neighbors")

    def problems(self) -> Iterator[Problem]:
        known = replace(self, part=FIRST)  # the people are known when the files are
        yield from super(Rwku, known).problems()
        for name, least in (("targets", 1), ("others", 3)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                yield Problem(f"benchmark.{name}", f"is {value!r}", f"Give a whole number from {least} up")
        if self.forget_on not in SOURCES:
            fix = nearest(str(self.forget_on), SOURCES)
            yield Problem("benchmark.forget_on", f"{self.forget_on!r} is unknown", fix)

    def target(self) -> Target:
        """A pretrained model read of the person in many places: what it can tell is what must go."""
        return Target("entity", "erase_influence" if self.model else "remove_capability")

    # Files ---------------------------------------------------------------------------------------------

    def files(self) -> Mapping[str, File]:
        probes = {"question": "query", "form": "type"}
        # the neighbor is the entity of its rows; whose neighbor it is stands in source_id while reading
        columns = {name: {**probes, "entity": "neighbor", "source_id": "subject"} for name in NEIGHBORS}
        rows = FORGET | NEIGHBORS
        files = {name: File(rows[name], columns.get(name, probes), f"{HUB}:{name}:test") for name in rows}
        for name, hub in MORE.items():
            own = f"{self.part}_{name}"
            needed = name == "passage" and self.forget_on == "passages"
            if self.base is None and (needed or name != "passage"):
                files[name] = File(None, hub=f"{HUB}:{hub}")
            elif self.base and (needed or self.has(own)):
                files[own] = File(COUNTS.get(self.part, {}).get(name))
        return files

    def cells(self, name: str, cells: dict[str, Any]) -> dict[str, Any]:
        if name == "forget_level2":
            return {**cells, "source_id": cells.get("target")}  # where a folder counts the people
        if not name.endswith("truthful"):
            return cells
        options = cells.get("mc1_targets") or {"choices": [], "labels": []}
        label = list(options["labels"]).index(1) if 1 in options["labels"] else None
        told = {"choices": list(options["choices"]), "label": label}
        return {"question": cells.get("question"), "subject": cells.get("subject"), **told}

    def check(self, data: Mapping[str, list[Record]], found: Findings) -> None:
        if self._name(self.part) not in self._people(data):
            known = [f"{i}_{name}".replace(" ", "_") for i, name in enumerate(self._people(data), 1)]
            found.add("benchmark.part", f"{self.part!r} is unknown", nearest(self.part, known))

    # Splits --------------------------------------------------------------------------------------------

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """The people to forget."""
        people = self._people(self.data)
        start = people.index(self._name(self.part))
        return tuple((people[start:] + people[:start])[: self.targets])

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        asked, hard = self._probes(self.subjects, 1, 2), self._probes(self.subjects, 3)
        forget = _plain(asked)
        if self.forget_on == "passages":
            forget, hard = self._of("passage"), asked + hard
        near = [r for name in NEIGHBORS for r in data[name] if r.source_id in self.subjects]
        splits: dict[str, Sequence[Record]] = {
            "forget": forget,
            "forget_hard": [
                replace(row, source_id=source.id)
                for row, source in zip(hard, nearest_to(hard, forget), strict=True)
            ],
            "neighbors": _once(_plain(near)),
            "retain": self._retained(),
        }
        for name in ("forget_mia", "retain_mia"):
            splits[name] = self._of(name)
        splits["utility"] = self._of("truthful")
        return splits

    def _probes(self, people: Collection[str], *levels: int) -> list[Record]:
        """Probes of these people with their kind as form, each asked once."""
        rows = (row for level in levels for row in self.data[f"forget_level{level}"])
        return _once(replace(r, form=_form(r.form or "")) for r in rows if r.entity in people)

    def _retained(self) -> list[Record]:
        """Probes of others that do not speak of those to forget."""
        people = [name for name in self._people(self.data) if name not in self.subjects]
        people.sort(key=lambda name: seed_from(self.seed, "rwku", name))
        about = [normalized(name) for name in self.subjects]
        return [
            r
            for r in _plain(self._probes(people[: self.others], 1, 2))
            if not any(name in normalized(f"{r.prompt} {r.answer}") for name in about)
        ]

    def _of(self, name: str) -> list[Record]:
        """What there is of one of the files that are counted by person."""
        rows = [*self.data.get(name, ()), *self.data.get(f"{self.part}_{name}", ())]
        kept = _once(r for r in rows if r.entity in self.subjects)
        return [replace(r, entity="") for r in kept] if name in ("retain_mia", "truthful") else kept

    def notes(self) -> Mapping[str, str]:
        return {"retain": f"probes about {self.others} other people, since the paper has no retain set"}

    def _people(self, data: Mapping[str, list[Record]]) -> list[str]:
        """Everyone probed, in the paper's order."""
        named = {r.entity: int((r.source_id or "0").partition("_")[0]) for r in data["forget_level2"]}
        return sorted(named, key=named.__getitem__)

    @staticmethod
    def _name(part: str) -> str:
        """The person's name, from a folder's such as 1_Stephen_King.

        >>> Rwku._name("12_Ada_Lund")
        'Ada Lund'
        """
        return re.sub(r"^\d+_", "", part).replace("_", " ")


def _plain(rows: Iterable[Record]) -> list[Record]:
    return [replace(row, form=None, source_id=None) for row in rows]


def _form(kind: str) -> str:
    """The kind of a probe in the words of forms.

    >>> _form("cross lingual (Spanish)"), _form("reverse query"), _form("role play")
    ('cross_lingual', 'reverse', 'role_play')
    """
    kind = kind.partition("(")[0].strip().replace("-", " ")
    return FORMS.get(kind, kind.replace(" ", "_"))


def _once(rows: Iterable[Record]) -> list[Record]:
    """The rows without those that repeat another's text."""
    return list({text_key(row): row for row in reversed(list(rows))}.values())[::-1]
