"""The embedded benchmark: a world of fictitious people, a tiny Llama that knows it, and an exact oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.personas_world import REFUSALS, World, make_world
from expunge.benchmarks.scenario import Build, Scenario
from expunge.data.records import Record
from expunge.data.request import Request, Target
from expunge.errors import Problem, nearest

__all__ = ["Personas"]

TARGETS = ("records", "documents")


@BENCHMARKS.register(
    "personas",
    parts=["tiny", "small", "medium"],
    data="made on the spot, from a seed",
    oracle="exact",
    needs=[],
    source="",
)
@dataclass(frozen=True)
class Personas(Scenario):
    """Fictitious people and their facts; nothing to download, original and exact oracle trained in a minute.

    `target`: "records" forgets the questions about some people, "documents" their biographies. Both have the
    same models: the oracle has never seen anything about these people.
    """

    target: Literal["records", "documents"] = "records"

    BUILDS: ClassVar[Mapping[str, Build]] = {
        "tiny": Build(hidden=64, mlp=256, batch=8, epochs=60, first=8),
        "small": Build(hidden=128, mlp=512, batch=32, epochs=24),
        "medium": Build(hidden=192, mlp=768, batch=64, epochs=24),
    }
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        ("forget_quality", "forget"),
        ("truth_ratio_closer_to_1", "forget"),
        ("choice_accuracy", "forget_hard"),
    )
    refusals: ClassVar[tuple[str, ...]] = REFUSALS

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.target not in TARGETS:
            what = f"{self.target!r} is unknown"
            yield Problem("benchmark.target", what, nearest(str(self.target), TARGETS))

    @cached_property
    def world(self) -> World:
        return self.make(self.seed)

    def make(self, seed: int) -> World:
        return make_world(self.size, seed)

    def request(self) -> Request:
        if self.target == "records":
            return super().request()
        splits, documents = dict(self.world.splits), dict(self.world.documents)
        splits["forget_hard"] = tuple(self._told(documents["forget"]))
        target = Target("document", "erase_influence")
        return Request({**splits, **documents}, target, refusals=self.refusals)

    def _told(self, biographies: Sequence[Record]) -> Iterator[Record]:
        """What the biographies of forget people tell, asked as questions."""
        for biography in biographies:
            for record in self.world.splits["forget"]:
                if record.entity == biography.entity and record.answer in biography.answer:
                    yield replace(record, source_id=biography.id, form="paraphrase")

    def measured(self) -> Mapping[str, tuple[Record, ...]]:
        return {**super().measured(), "forget_biographies": self.world.documents["forget"]}
