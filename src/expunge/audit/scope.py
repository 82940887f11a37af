"""The scope in four cells, scored apart: inside or outside the request, easy or hard to tell.

In and easy is the forget set; in and hard the same knowledge asked differently, by form, and what belongs to
the target but was not given to the method: held-out queries and hidden forget data; out and hard the
neighbors; out and easy what was to be kept and the general abilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from expunge.audit.scorecard import ScopeRow
from expunge.data.builders.partial import HELD_OUT, HIDDEN
from expunge.evidence import Evidence
from expunge.metrics import make_metric
from expunge.metrics.base import ModelEvidence

__all__ = ["CELLS", "scope_rows"]

Cell = Literal["in, easy", "in, hard", "out, hard", "out, easy"]

CELLS: Mapping[str, Cell] = {
    "forget": "in, easy",
    "forget_hard": "in, hard",
    HELD_OUT: "in, hard",
    HIDDEN: "in, hard",
    "neighbors": "out, hard",
    "report": "out, easy",
    "utility": "out, easy",
}


NAMES = {HELD_OUT: "held-out queries", HIDDEN: "hidden forget data"}


def scope_rows(
    models: Mapping[str, ModelEvidence], metric: str, forms: Mapping[str, str], seed: int = 0
) -> list[ScopeRow]:
    """One row per split, and per form of forget_hard, of every model; `forms`: forget_hard record → form."""
    rows = []
    for split, cell in CELLS.items():
        for form, records in _parts(models, split, forms):
            for model, evidence in models.items():
                if split not in evidence:
                    continue
                part = [row for row in evidence[split] if records is None or row.record_id in records]
                score = make_metric(metric).score({split: Evidence(split, part)}, split, seed=seed)
                rows.append(
                    ScopeRow(
                        cell=cell,
                        split=split,
                        form=form,
                        metric=metric,
                        model=model,
                        value=score.value,
                        low=score.low,
                        high=score.high,
                        n=score.n,
                        better=score.better,
                        reason=score.reason,
                    )
                )
    return rows


def _parts(
    models: Mapping[str, ModelEvidence], split: str, forms: Mapping[str, str]
) -> Iterator[tuple[str | None, set[str] | None]]:
    """(None or what the split is called, all records), then each form where there are several."""
    yield NAMES.get(split), None
    if split == "forget_hard":
        there = {
            record for evidence in models.values() if split in evidence for record in evidence[split].gold
        }
        names = sorted({forms[record] for record in there if record in forms})
        for name in names if len(names) > 1 else ():
            yield name, {record for record in there if forms.get(record) == name}
