"""Why retained things were retained: how near each record stood to the damage, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn.functional import normalize

from expunge.data.records import Record
from expunge.explain.attribution.embedding import mean_states
from expunge.explain.record_gradients import gradient_source
from expunge.explain.states import all_layers
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.subjects.subject import Subject
from expunge.training.gradients import mean_gradient

__all__ = ["RetainedRow", "explains", "retained_table"]


@dataclass(frozen=True)
class RetainedRow:
    """One record that should stay. Nearness is measured in the original, `change` between the two models.

    `damage`: expected rise of its NLL per unit of forget ascent, g_f · g_i; `conflict`: cos(g_f, g_i).
    `nearest`: the forget record with the largest g_j · g_i. `similarity`: cosine of mean states at answer
    positions to the most alike forget record. `change`: mean answer log-probability after minus before.
    """

    record: str
    entity: str
    damage: float
    conflict: float
    nearest: str
    similarity: float
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


def retained_table(
    original: Subject, unlearned: Subject, forget: Sequence[Record], kept: Sequence[Record]
) -> list[RetainedRow]:
    """One row per record of `kept` that has an answer, those nearest to damage first."""
    kept = [record for record in kept if original.encoder.encode(record).num_targets]
    mean = mean_gradient(original, forget)
    with gradient_source(original) as gradients:
        direction = torch.cat([mean[name].reshape(-1) for name in gradients.chosen])
        each = torch.stack([gradients.flat(record) for record in forget])
        found = []
        for record in kept:
            g = gradients.flat(record)
            dot = float(direction @ g)
            size = float(direction.norm() * g.norm())
            nearest = forget[int((each @ g).argmax())].id
            found.append((dot, dot / size if size > 0 else 0.0, nearest))
    alike = _similarity(original, forget, kept)
    before, after = (_scores(subject, kept) for subject in (original, unlearned))
    rows = [RetainedRow(r.id, r.entity, *found[i], alike[i], before[i], after[i]) for i, r in enumerate(kept)]
    return sorted(rows, key=lambda row: -row.damage)


def explains(rows: Sequence[RetainedRow]) -> dict[str, float | None]:
    """Rank correlation of what a record lost with its damage, conflict, similarity; None: constant."""
    loss = np.array([-row.change for row in rows])
    found: dict[str, float | None] = {}
    for name in ("damage", "conflict", "similarity"):
        near = np.array([getattr(row, name) for row in rows])
        flat = len(rows) < 3 or np.ptp(near) == 0 or np.ptp(loss) == 0
        found[name] = None if flat else float(spearmanr(near, loss).statistic)
    return found


def _similarity(subject: Subject, forget: Sequence[Record], kept: Sequence[Record]) -> list[float]:
    layer = len(all_layers(subject)) // 2
    ours, theirs = (mean_states(subject, some, [layer])[layer] for some in (forget, kept))
    center = torch.cat([ours, theirs]).mean(0)
    return (normalize(theirs - center) @ normalize(ours - center).T).max(dim=1).values.tolist()


def _scores(subject: Subject, records: Sequence[Record]) -> list[float]:
    """Mean answer log-probability per record."""
    evidence = score_sheet(subject, make_sheet(subject.encoder, records, "retain"))
    return [float(row.logprobs.mean()) for row in evidence]
