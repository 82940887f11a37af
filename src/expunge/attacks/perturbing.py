"""What the attacks that change the weights without training share: change a copy, ask the same questions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from expunge.attacks.base import Attack, Field, Outcome
from expunge.errors import NotComputable
from expunge.evidence import Evidence
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Sheet, make_sheet
from expunge.progress import track
from expunge.subjects import merge
from expunge.subjects.subject import Subject
from expunge.subjects.weights import named_weights

__all__ = ["Changed", "Perturbation", "ask", "plain_copy", "same_shape", "sheets_of"]


class Changed(NamedTuple):
    """A configuration, the changed model, and what stands beside its outcome."""

    config: Mapping[str, Any]
    subject: Subject
    details: Mapping[str, Any]


class Perturbation(Attack):
    """An attack that says which changed models there are; each is asked about the scored records once.

    The model of a step may be changed again for the next one: it is to be read before that.
    """

    @abstractmethod
    def configs(self, field: Field) -> Sequence[Mapping[str, Any]]:
        """The configurations, in order."""

    @abstractmethod
    def changed(self, subject: Subject, field: Field) -> Iterator[Changed]:
        """The changed copy of each configuration, one after the other."""

    def run(self, subject: Subject, field: Field) -> Iterator[Outcome]:
        subject.need("weights", "logprobs", what=f"the attack {self.name}")
        sheets = sheets_of(subject, field)
        with track(f"attack {self.name}", len(self.configs(field))) as advance:
            for config, work, details in self.changed(subject, field):
                yield Outcome(config, ask(work, sheets), details=details)
                advance(1)


def sheets_of(subject: Subject, field: Field) -> dict[str, Sheet]:
    """The questions about the scored records, by split."""
    splits = field.scored().items()
    return {s: make_sheet(subject.encoder, records, s, field.variants) for s, records in splits if records}


def ask(subject: Subject, sheets: Mapping[str, Sheet]) -> dict[str, Evidence]:
    return {split: score_sheet(subject, sheet) for split, sheet in sheets.items()}


def plain_copy(subject: Subject) -> Subject:
    """A copy without adapters, to be changed in place."""
    return merge(subject.clone())


def same_shape(one: Subject, other: Subject) -> None:
    """Raise NotComputable where two models do not have the same tensors."""
    first, second = ({n: t.shape for n, t in named_weights(s.model)} for s in (one, other))
    if first != second:
        raise NotComputable("the original has another architecture")
