"""The words of a record that carry its fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked


@ANNOTATORS.register("keywords", columns=["keywords"])
@dataclass(frozen=True)
class Keywords(Annotator):
    """The record's `keywords`, beside its evidence: a metric reads rows, not records."""

    def missing(self, asked: Asked) -> str | None:
        named = any(line.record.keywords for line in asked.sheet.lines)
        return None if named else "no record names keywords"

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        return [
            {"keywords": list(line.record.keywords)}
            if line.variant == "gold" and line.record.keywords
            else {}
            for line in asked.sheet.lines
        ]
