"""The sheet: which texts a model is scored on, encoded once, asked as often as needed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from expunge.data.encoding import Encoded, Encoder
from expunge.data.records import Record
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, Problem, nearest

__all__ = ["VARIANTS", "Line", "Sheet", "make_sheet", "variants_of"]

VARIANTS = ("gold", "paraphrased_prompt", "paraphrased_answer", "perturbed", "alternate", "choice", "refusal")

ANSWERS = {
    "paraphrased_answer": "paraphrased_answers",
    "perturbed": "perturbed_answers",
    "alternate": "alternates",
    "choice": "choices",
}
"""Variants that put another answer in the place of the record's own, and the field that holds it."""

REFUSED_ELSEWHERE = "paraphrased_refusal"
"""Another question and the refusal: only what measures edits asks for it."""


class Line(NamedTuple):
    """One record in one variant; `windows` has more than one row for a long document."""

    record: Record
    variant: str
    windows: tuple[Encoded, ...]
    label: bool | None


@dataclass(frozen=True)
class Sheet:
    split: str
    lines: tuple[Line, ...]
    records_fingerprint: str
    encoder: Encoder


def variants_of(record: Record, kinds: Iterable[str]) -> Iterable[tuple[str, Record, bool | None]]:
    """(variant, the record as asked in it, is-the-right-choice) for every variant of these kinds it has."""
    for kind in kinds:
        if kind == "gold":
            yield "gold", record, None
        elif kind == "paraphrased_prompt":
            for j, prompt in enumerate(record.paraphrased_prompts):
                yield f"{kind}:{j}", record.asked(prompt), None
        elif kind == "refusal":
            if record.refusal:
                yield kind, record.answered(record.refusal), None
        elif kind == REFUSED_ELSEWHERE:
            for j, prompt in enumerate(record.paraphrased_prompts if record.refusal else ()):
                yield f"{kind}:{j}", record.asked(prompt).answered(record.refusal or ""), None
        elif kind in ANSWERS:
            for j, answer in enumerate(getattr(record, ANSWERS[kind])):
                yield f"{kind}:{j}", record.answered(answer), j == record.label if kind == "choice" else None
        else:
            raise ConfigError(
                Problem(f"variant {kind!r}", "unknown", nearest(kind, [*VARIANTS, REFUSED_ELSEWHERE]))
            )


def make_sheet(
    encoder: Encoder, records: Sequence[Record], split: str, kinds: Sequence[str] = ("gold",)
) -> Sheet:
    lines = [
        Line(record, variant, tuple(encoder.windows(asked)), label)
        for record in records
        for variant, asked, label in variants_of(record, kinds)
    ]
    return Sheet(split, tuple(lines), fingerprint_records(records), encoder)


def text_sizes(text: str) -> tuple[int, int]:
    """(UTF-8 bytes, zlib bytes at level 6) of an answer text."""
    data = text.encode()
    return len(data), len(zlib.compress(data, 6))
