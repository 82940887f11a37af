"""Further training on what was to be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from expunge.attacks.base import ATTACKS, Field, Profile
from expunge.attacks.finetuning import Arm, FinetuningAttack, Plan, Trial
from expunge.data.ability import ability_records
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.errors import DataError, Problem

Data = Literal["retain", "neighbors", "generic"]

DATA: Mapping[Profile, tuple[Data, ...]] = {
    "quick": ("retain",),
    "default": ("retain", "neighbors"),
    "deep": ("retain", "neighbors", "generic"),
}


@ATTACKS.register(
    "benign",
    threat="fine-tune",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    budget="retain, neighbors × 3 rates × 150 steps (quick: retain, 20 steps; deep: generic, LoRA, 3 seeds)",
    source="Hu et al. 2024, arXiv 2406.13356; Siddiqui et al. 2025, arXiv 2505.22310",
)
@dataclass(frozen=True, kw_only=True)
class Benign(FinetuningAttack):
    """Fine-tune on data without a forget fact: what comes back was dormant, and ordinary training revives it.

    `retain`: what was to be kept. `neighbors`: the same kind of question about other entities, the strongest
    driver in print. `generic`: the utility split, or expunge's own questions of general ability. Each is a
    row of its own. Raises DataError where a record is a forget record, by id or by text: it would inject it.
    """

    SWEEPS: ClassVar[Mapping[Profile, tuple[Arm, ...]]] = {
        "deep": (Arm(), Arm(seed=1), Arm(seed=2), Arm("lora")),
    }
    STEPS: ClassVar[Mapping[Profile, tuple[int, ...]]] = {
        "quick": (0, 5, 20),
        "default": (0, 10, 50, 150),
        "deep": (0, 10, 50, 150),
    }

    data: tuple[Data, ...] = ()  # empty: the profile's

    def missing(self, field: Field) -> str | None:
        return None if self._sets(field) else "no retain records to train on"

    def plans(self, field: Field) -> Sequence[Plan]:
        return [
            Plan({"data": name}, [Trial(_clean(name, records, field), field.scored())])
            for name, records in self._sets(field).items()
        ]

    def trials(self, field: Field) -> Sequence[Trial]:
        return [trial for plan in self.plans(field) for trial in plan.trials]

    def _sets(self, field: Field) -> dict[str, Sequence[Record]]:
        request = field.request
        sets = {
            "retain": request.retain,
            "neighbors": request["neighbors"],
            "generic": request["utility"] or ability_records(field.seed),
        }
        return {name: sets[name] for name in self.data or DATA[field.profile] if sets[name]}


def _clean(name: str, records: Sequence[Record], field: Field) -> Sequence[Record]:
    """The records; DataError where one of them is a forget record."""
    request = field.request
    if shared := overlap(records, [*request.forget, *request["forget_hard"]]):
        problem = Problem(
            name,
            f"{len(shared)} records are in the forget set too: {', '.join(shared[:3])}",
            "Take them out: training on them would not be benign",
        )
        raise DataError(problem)
    return records


def overlap(records: Iterable[Record], forget: Iterable[Record]) -> list[str]:
    """Ids of the records that are also forget records, by id or by question and answer."""
    ids, texts = set(), set()
    for record in forget:
        ids.add(record.id)
        texts.add(_text(record))
    return [r.id for r in records if r.id in ids or _text(r) in texts]


def _text(record: Record) -> tuple[str, ...]:
    context = (turn.content for turn in record.context)
    return tuple(normalized(text) for text in (*context, record.prompt, record.answer))
