"""Attribution by neighbors in the model's own states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from expunge.data.records import Record
from expunge.explain.base import ATTRIBUTIONS, Attributed, Attribution
from expunge.explain.states import all_layers, check_layers, row_states
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows

__all__ = ["EmbeddingNeighbors", "mean_states"]


def mean_states(subject: Subject, records: Sequence[Record], layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: [records, D]} the mean state where a record's answer is predicted, over all its windows."""
    rows = [answer_rows(subject, [record]) for record in records]
    states = iter(row_states(subject, [row for some in rows for row in some], layers, "answer"))
    means: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for some in rows:
        pieces = [next(states) for _ in some]
        for layer in layers:
            means[layer].append(torch.cat([piece[layer] for piece in pieces]).mean(0))
    return {layer: torch.stack(found) for layer, found in means.items()}


@ATTRIBUTIONS.register(
    "embedding", uses="states", scale="cosine: 1 is the same direction", cost="1F per record", source=""
)
@dataclass(frozen=True, kw_only=True)
class EmbeddingNeighbors(Attribution):
    """Records whose mean state at answer positions points the way of the query's: a cosine.

    After block `layer` (None: the middle one), the mean over `records` taken out of both, since all states
    share a large common direction. No causal claim: what is near need not have taught anything.
    """

    layer: int | None = None

    def attribute(
        self, subject: Subject, queries: Sequence[Record], records: Sequence[Record], *, seed: int = 0
    ) -> Attributed:
        count = len(all_layers(subject))
        (layer,) = check_layers(subject, [count // 2 if self.layer is None else self.layer])
        known, asked = (mean_states(subject, some, [layer])[layer] for some in (records, queries))
        center = known.mean(0)
        scores = normalize(asked - center) @ normalize(known - center).T
        return Attributed(tuple(q.id for q in queries), tuple(r.id for r in records), scores.cpu().numpy())
