"""Attribution by the dot product of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from expunge.data.records import Record
from expunge.explain.base import ATTRIBUTIONS, Attributed, Attribution
from expunge.explain.record_gradients import gradient_source, matching
from expunge.progress import track
from expunge.subjects.subject import Subject

__all__ = ["GradientDot", "gradient_products"]


def gradient_products(
    subject: Subject, queries: Sequence[Record], records: Sequence[Record], match: str, *, cosine: bool
) -> np.ndarray:
    """[Q, N]: g_q · g_z, or its cosine. The queries' gradients are held, the records' come one by one."""
    with gradient_source(subject, matching(subject, match)) as gradients:
        asked = torch.stack([gradients.flat(query) for query in queries])  # [Q, P]
        sizes = asked.norm(dim=1) if cosine else torch.ones(len(asked), device=asked.device)
        columns = []
        with track("attribution", len(records)) as advance:
            for record in records:
                g = gradients.flat(record)
                scale = sizes * (g.norm() if cosine else 1)
                columns.append((asked @ g / scale.clamp(min=1e-30)).cpu().numpy())
                advance()
    return np.stack(columns, axis=1)


@ATTRIBUTIONS.register(
    "gradient_dot",
    uses="gradients",
    scale="fall of the query's loss by a unit step on the record",
    cost="1F+1B per record",
    source="Pruthi et al. 2020, arXiv 2002.08484",
)
@dataclass(frozen=True, kw_only=True)
class GradientDot(Attribution):
    """How far a gradient step on a record would lower the query's loss: g_q · g_z.

    Gradients of the mean answer NLL at the weights as they are, over the parameters that `match` (all). What
    is memorized has small gradients, and large ones dominate: `cosine` takes their size out.
    """

    match: str = ""
    cosine: bool = False

    def attribute(
        self, subject: Subject, queries: Sequence[Record], records: Sequence[Record], *, seed: int = 0
    ) -> Attributed:
        scores = gradient_products(subject, queries, records, self.match, cosine=self.cosine)
        return Attributed(tuple(q.id for q in queries), tuple(r.id for r in records), scores)
