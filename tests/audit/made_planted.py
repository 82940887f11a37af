"""Evidence of probes whose planted option is the likelier one, or the less likely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.data.records import Record
from expunge.evidence import Evidence, Row


def _row(record: Record, variant: str, p: float, label: bool | None) -> Row:
    one = np.ones(1, dtype=np.float32)
    return Row(
        record.id, "forget_hard", record.entity, variant, np.log(p) * one, one.astype(bool),
        one.astype(np.int32), -one, one, False, False, 3, 4, 4, 64, record.answer, label=label,
    )  # fmt: skip


def evidence_of(probes: Sequence[Record], *, planted_wins: bool) -> dict[str, Evidence]:
    rows = []
    for record in probes:
        rows.append(_row(record, "gold", 0.5, None))
        for j in range(len(record.choices)):
            wins = (j == record.label) == planted_wins
            rows.append(_row(record, f"choice:{j}", 0.9 if wins else 0.1, j == record.label))
    return {"forget_hard": Evidence("forget_hard", rows)}
