"""Which shard and slice a record belongs to, how long each stage trains, in which order: never a matter of
who else is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.data.records import Record
from expunge.stats import seed_from
from expunge.training.settings import TrainSettings

__all__ = ["KeyedOrder", "ShardPlan"]


@dataclass(frozen=True)
class ShardPlan:
    """S shards of R slices. A hash of the entity (or id) and the seed places a record, whoever else is there.

    By entity, all that is known about a person lies in one slice of one shard, and a request to forget them
    touches one shard; a record without an entity goes by its id.
    """

    shards: int = 4
    slices: int = 1
    seed: int = 0
    by: Literal["entity", "id"] = "entity"

    def place(self, record: Record) -> tuple[int, int]:
        """(shard, slice) of a record."""
        unit = (record.entity if self.by == "entity" else "") or record.id
        return (
            seed_from(self.seed, "shard", unit) % self.shards,
            seed_from(self.seed, "slice", unit) % self.slices,
        )

    def assign(self, records: Iterable[Record]) -> list[list[list[Record]]]:
        """The records of each slice of each shard, in an order of their own."""
        parts: list[list[list[Record]]] = [[[] for _ in range(self.slices)] for _ in range(self.shards)]
        for record in sorted(records, key=lambda r: seed_from(self.seed, "order", r.id)):
            shard, part = self.place(record)
            parts[shard][part].append(record)
        return parts

    def stage(self, settings: TrainSettings, shard: int, part: int) -> TrainSettings:
        """How long a stage trains: all slices together cost what one training on the whole shard costs.

        With e epochs each stage gets 2e/(R+1); given as steps, those are steps of all shards together.
        """
        share = 2 / (self.slices + 1)
        steps = settings.steps and settings.steps * share * (part + 1) / (self.slices * self.shards)
        return settings.model_copy(
            update={
                "epochs": settings.epochs * share,
                "steps": max(1, round(steps)) if steps else None,
                "seed": seed_from(settings.seed, "shard", shard, "slice", part),
                "report_to": [],
            }
        )


class KeyedOrder:
    """Steps over rows; the order of an epoch is that of a hash of (seed, epoch, record id) of each row."""

    def __init__(self, ids: Sequence[str], *, batch: int, seed: int):
        seen: Counter[str] = Counter()
        self.keys = []
        for name in ids:  # the windows of one long record go their own ways
            self.keys.append((name, seen[name]))
            seen[name] += 1
        self.batch, self.seed = batch, seed
        self.steps_per_epoch = -(-len(ids) // batch)
        self._epoch: tuple[int, list[int]] = (-1, [])

    def step(self, number: int) -> tuple[int, list[int], list[int]]:
        epoch, place = divmod(number, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            rank = lambda i: seed_from(self.seed, "rows", epoch, *self.keys[i])  # noqa: E731
            self._epoch = epoch, sorted(range(len(self.keys)), key=rank)
        return epoch, self._epoch[1][place * self.batch : (place + 1) * self.batch], []
