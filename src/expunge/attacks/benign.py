"""Further training on what was to be kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from expunge.attacks.base import ATTACKS, Field
from expunge.attacks.finetuning import FinetuningAttack, Trial
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.errors import DataError, Problem


@ATTACKS.register(
    "benign",
    threat="fine-tune",
    kind="weights",
    injects="nothing",
    tier=1,
    profiles=["quick", "default", "deep"],
    source="Hu et al. 2024, arXiv 2406.13356; Siddiqui et al. 2025, arXiv 2505.22310",
)
@dataclass(frozen=True, kw_only=True)
class Benign(FinetuningAttack):
    """Fine-tune on the retain set alone: what comes back was dormant, and ordinary training revives it.

    Raises DataError where a retain record is a forget record, by id or by text: that would inject the answer.
    """

    def missing(self, field: Field) -> str | None:
        return None if field.request.retain else "no retain records to train on"

    def trials(self, field: Field) -> Sequence[Trial]:
        request = field.request
        if shared := overlap(request.retain, [*request.forget, *request["forget_hard"]]):
            problem = Problem(
                "retain",
                f"{len(shared)} records are in the forget set too: {', '.join(shared[:3])}",
                "Take them out: training on them would not be benign",
            )
            raise DataError(problem)
        return [Trial(request.retain, field.scored())]


def overlap(retain: Iterable[Record], forget: Iterable[Record]) -> list[str]:
    """Ids of the retain records that are also forget records, by id or by question and answer."""
    ids, texts = set(), set()
    for record in forget:
        ids.add(record.id)
        texts.add(_text(record))
    return [r.id for r in retain if r.id in ids or _text(r) in texts]


def _text(record: Record) -> tuple[str, ...]:
    context = (turn.content for turn in record.context)
    return tuple(normalized(text) for text in (*context, record.prompt, record.answer))
