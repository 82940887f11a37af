"""The options of a choice listed under letters, and how likely each letter is as the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Line

__all__ = ["Letters", "listed"]


@ANNOTATORS.register("letters", columns=["letters"])
@dataclass(frozen=True)
class Letters(Annotator):
    """Log-probability of each choice's letter as the first thing answered, in the order of the choices."""

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        encoder = asked.sheet.encoder
        lines: list[Line] = []
        of: list[int] = []
        for i, line in enumerate(asked.sheet.lines):
            count = len(line.record.choices)
            if line.variant == "gold" and 1 < count <= len(ascii_uppercase):
                for letter in ascii_uppercase[:count]:
                    encoded = encoder.encode(listed(line.record).answered(letter))
                    ids = encoded.ids[: len(encoded.ids) - encoded.has_end]  # what follows a letter is open
                    shown = Encoded(ids, encoded.num_prompt, False, encoded.truncated)
                    lines.append(Line(line.record, "gold", (shown,), None))
                    of.append(i)
        sheet = replace(asked.sheet, lines=tuple(lines))
        found: list[dict[str, Any]] = [{} for _ in asked.sheet.lines]
        for i, line, row in zip(of, lines, score_sheet(asked.subject, sheet), strict=True):
            encoded = line.windows[0]
            if not encoded.truncated:
                found[i].setdefault("letters", []).append(float(row.logprobs.sum(dtype=float)))
        return found


def listed(record: Record) -> Record:
    """The record with its choices under its prompt, each after its letter; the letter is to be answered."""
    options = "\n".join(f"{letter}. {c}" for letter, c in zip(ascii_uppercase, record.choices, strict=False))
    return record.asked(f"{record.prompt}\n{options}")
