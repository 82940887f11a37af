"""The contracts of this room: attributions (which records an answer comes from), localizers (where they sit).

Both are frozen dataclasses of settings with a card, one a file, deterministic in the seed; the subject given
is never changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.data.records import Record
    from expunge.subjects.subject import Subject

__all__ = [
    "ATTRIBUTIONS",
    "LOCALIZERS",
    "Attributed",
    "Attribution",
    "Case",
    "Localization",
    "Localizer",
    "top_layer",
]

ATTRIBUTIONS: Registry[Attribution] = Registry("attribution", "expunge.explain.attribution", "ATTRIBUTIONS")
LOCALIZERS: Registry[Localizer] = Registry("localizer", "expunge.explain.localization", "LOCALIZERS")


@dataclass(frozen=True)
class Attributed:
    """`scores` [Q, N]: how much each record speaks for each query's answer; what they mean is the card's."""

    queries: tuple[str, ...]
    records: tuple[str, ...]
    scores: np.ndarray
    notes: tuple[str, ...] = ()

    def top(self, query: str, count: int = 5) -> list[tuple[str, float]]:
        """The records with the largest scores, best first; of equal ones the first."""
        row = self.scores[self.queries.index(query)]
        return [(self.records[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:count]]


class Attribution(ABC):
    """Which records the answer of a query comes from.

    uses: gradients | states | text. scale: what a score means; a higher one always speaks for the answer.
    """

    name: ClassVar[str]
    card: ClassVar[Card]

    @abstractmethod
    def attribute(
        self, subject: Subject, queries: Sequence[Record], records: Sequence[Record], *, seed: int = 0
    ) -> Attributed:
        """Scores of `records` (those trained on) for the answers of `queries`."""


@dataclass(frozen=True)
class Case:
    """What a localizer looks at: records to locate, records to set them against, and another model if needed.

    `other`: the model after unlearning, where `subject` is the one before (or the other way round).
    """

    forget: Sequence[Record]
    retain: Sequence[Record] = ()
    other: Subject | None = None
    seed: int = 0


@dataclass(frozen=True)
class Localization:
    """Where some records sit.

    `map` [records, layers]: evidence that a layer carries a record, comparable within a row. `neurons`
    [records, layers, F] where the localizer has them. `mask`: parameter name → True or a boolean tensor, as
    every selection has it; `size` weights of it are set.
    """

    records: tuple[str, ...]
    layers: tuple[int, ...]
    map: np.ndarray
    mask: Mapping[str, Tensor | bool]
    neurons: np.ndarray | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Localizer(ABC):
    """Where in the model records sit.

    unit: weight | neuron | block, what its mask is made of. access: gradients | states. localizes: whether a
    fact planted in one block's MLP is found there (tests/explain/test_planted.py).
    """

    name: ClassVar[str]
    card: ClassVar[Card]

    @abstractmethod
    def localize(self, subject: Subject, case: Case) -> Localization:
        """A map and a mask. Raises DataError or ConfigError where the case lacks what it needs."""


def top_layer(found: Localization) -> int:
    """The layer with the largest mean evidence over records, each record's row scaled to mean size 1."""
    scale = np.abs(found.map).mean(axis=1, keepdims=True)
    rows = np.divide(found.map, scale, out=np.zeros_like(found.map), where=scale > 0)
    return found.layers[int(rows.mean(axis=0).argmax())]
