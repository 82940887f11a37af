"""The contract of an annotator: a question asked of the model, or of its text, once per row of evidence.

Embeddings, entailment labels, gradient norms, distances to another model: what a metric reads and one forward
pass does not give. An annotator writes columns into `Row.extra`; a metric names them in `columns`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from expunge.evidence import Evidence
from expunge.measure.sheet import Sheet
from expunge.registry import Card, Registry

if TYPE_CHECKING:
    from expunge.subjects.subject import Subject

__all__ = ["ANNOTATORS", "Annotator", "Asked", "annotate", "annotators_of", "described", "peers_of"]

ANNOTATORS: Registry[Annotator] = Registry("annotator", "expunge.measure.annotators", "ANNOTATORS")


@dataclass(frozen=True)
class Asked:
    """What an annotator sees: the model, what it was asked (one line of the sheet per row), what it did.

    `peers`: "original", "oracle" → loads that model, where there is one.
    """

    subject: Subject
    sheet: Sheet
    evidence: Evidence
    peers: Mapping[str, Callable[[], Subject]] = field(default_factory=dict)


class Annotator(ABC):
    """One annotator, one file; a frozen dataclass of its settings.

    The card says `columns` (what it writes), `peers` (models beside the asked one that it needs) and `splits`
    (where it is asked; everywhere without it).
    """

    name: ClassVar[str]
    card: ClassVar[Card]

    def missing(self, asked: Asked) -> str | None:
        """Why this cannot be asked of this model; None when it can."""
        return None

    def identity(self) -> dict[str, str]:
        """What the columns depend on beside the settings and this code: the weights of another model, say."""
        return {}

    @abstractmethod
    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        """The columns of every row, in order: plain JSON values; an empty mapping where there are none."""


def annotators_of(columns: Iterable[str]) -> list[str]:
    """The annotators that write these columns, by name."""
    wanted = set(columns)
    return [card.name for card in ANNOTATORS.cards() if wanted & set(card.fields["columns"])]


def peers_of(names: Iterable[str]) -> list[str]:
    """The models that these annotators compare with."""
    return sorted({peer for name in names for peer in ANNOTATORS.card(name).fields.get("peers", ())})


def described(names: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Annotator → its settings and its identity: what stands in keys."""
    made = {name: ANNOTATORS.make(name, **settings.get(name, {})) for name in names}
    return {
        name: {"settings": dict(settings.get(name, {})), **annotator.identity()}
        for name, annotator in made.items()
    }


def annotate(
    asked: Asked, names: Iterable[str], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> Evidence:
    """The evidence with the columns of these annotators; what could not be asked stands in `meta`.

    `settings`: annotator → its own.
    """
    rows, skipped = list(asked.evidence.rows), {}
    for name in names:
        annotator = ANNOTATORS.make(name, **(settings or {}).get(name, {}))
        splits = annotator.card.fields.get("splits")
        if splits and asked.sheet.split not in splits:
            continue
        lacking = [peer for peer in annotator.card.fields.get("peers", ()) if peer not in asked.peers]
        reason = f"there is no {' and no '.join(lacking)}" if lacking else annotator.missing(asked)
        if reason:
            skipped[name] = reason
            continue
        found = annotator.annotate(asked)
        rows = [replace(row, extra={**row.extra, **more}) for row, more in zip(rows, found, strict=True)]
    meta = {**asked.evidence.meta, **({"not_annotated": skipped} if skipped else {})}
    return Evidence(asked.evidence.split, rows, meta)
