"""What every builder of a form shares: what it sees, and how a built row looks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from expunge.data.builders.wording import named, template_of
from expunge.data.near import normalized
from expunge.data.records import Record

__all__ = ["Seen", "row"]


@dataclass(frozen=True)
class Seen:
    """The forget records, and all others that a form may compare or draw from, in whatever order."""

    forget: Sequence[Record]
    others: Sequence[Record] = ()
    seed: int = 0

    @cached_property
    def all(self) -> tuple[Record, ...]:
        return tuple(sorted((*self.forget, *self.others), key=lambda r: (r.id, r.prompt, r.answer)))

    @cached_property
    def by_template(self) -> Mapping[str, tuple[Record, ...]]:
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.all:
            if template := template_of(record):
                found[template].append(record)
        return {template: tuple(records) for template, records in found.items()}

    def peers(self, record: Record) -> Iterator[Record]:
        """Records that ask the same of another entity."""
        own = normalized(named(record))
        for other in self.by_template.get(template_of(record), ()):
            if normalized(named(other)) != own:
                yield other


def row(
    record: Record,
    form: str,
    prompt: str,
    answer: str | None = None,
    *,
    number: int = 0,
    choices: tuple[str, ...] = (),
    label: int | None = None,
) -> Record:
    """A built row that asks for what `record` tells; what fits only the old prompt or answer is left out."""
    same = answer is None or answer == record.answer
    answers = record if same else replace(
        record, answer=str(answer), paraphrased_answers=(), perturbed_answers=(), alternates=(), keywords=()
    )  # fmt: skip
    return replace(
        answers, id=f"{record.id}.built-{form}-{number}", prompt=prompt, paraphrased_prompts=(),
        choices=choices, label=label, source_id=record.id, form=form,
    )  # fmt: skip
