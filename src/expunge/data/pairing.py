"""Which rows a step trains on: a function of (seed, epoch, index), never of a global generator.

So a resumed run draws what the straight run would have drawn, and two ranks draw different rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from expunge.stats import seed_from

__all__ = ["Schedule", "partner"]

_MEGA = 8  # batches sorted together by length: shuffled across, little padding within


def _permutation(n: int, *parts: object) -> np.ndarray:
    return np.random.default_rng(seed_from(*parts)).permutation(n)


def partner(seed: int, epoch: int, index: int, num_rows: int, num_retain: int) -> int:
    """The retain row beside position `index` of an epoch of `num_rows`.

    Positions count through the epochs, so every retain row is used before one comes twice.
    """
    lap, place = divmod(epoch * num_rows + index, num_retain)
    return int(_permutation(num_retain, seed, "retain", lap)[place])


class Schedule:
    """The steps of a run over `lengths` rows, with retain partners where there are retain rows.

    One step takes `batch` rows of the epoch's order; position `index` of that order brings the retain row
    `partner(seed, epoch, index, ...)` into the epoch. Neighboring batches are sorted by length, both sides.
    """

    def __init__(self, lengths: Sequence[int], retain_lengths: Sequence[int], *, batch: int, seed: int):
        if not lengths:
            raise ValueError("no rows to train on")
        self.lengths = np.asarray(lengths)
        self.retain_lengths = np.asarray(retain_lengths)
        self.batch = batch
        self.seed = seed
        self.steps_per_epoch = math.ceil(len(self.lengths) / batch)
        self._epoch: tuple[int, list[tuple[list[int], list[int]]]] = (-1, [])

    def step(self, number: int, rank: int = 0, world: int = 1) -> tuple[int, list[int], list[int]]:
        """(epoch, row indices, retain indices) of step `number`, counted from 0; a rank's own share."""
        epoch, place = divmod(number, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._plan(epoch))
        rows, retain = self._epoch[1][place]
        return epoch, rows[rank::world], retain[rank::world]

    def _plan(self, epoch: int) -> list[tuple[list[int], list[int]]]:
        order = _permutation(len(self.lengths), self.seed, "rows", epoch)
        retain = self._partners(epoch, len(order))
        batches: list[tuple[list[int], list[int]]] = []
        for start in range(0, len(order), self.batch * _MEGA):
            part = slice(start, start + self.batch * _MEGA)
            rows = _by_length(order[part], self.lengths)
            pairs = _by_length(retain[part], self.retain_lengths)
            for at in range(0, len(rows), self.batch):
                cut = slice(at, at + self.batch)
                batches.append((rows[cut], pairs[cut]))
        return [batches[i] for i in _permutation(len(batches), self.seed, "batches", epoch)]

    def _partners(self, epoch: int, count: int) -> np.ndarray:
        num_retain = len(self.retain_lengths)
        if num_retain == 0:
            return np.empty(0, dtype=int)
        laps, places = np.divmod(epoch * count + np.arange(count), num_retain)
        drawn = {lap: _permutation(num_retain, self.seed, "retain", lap) for lap in np.unique(laps).tolist()}
        return np.array([drawn[lap][place] for lap, place in zip(laps.tolist(), places, strict=True)])


def _by_length(indices: np.ndarray, lengths: np.ndarray) -> list[int]:
    return [int(i) for i in sorted(indices, key=lambda i: int(lengths[i]))] if len(indices) else []
