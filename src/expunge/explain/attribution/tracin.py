"""Attribution along the training: TracIn over checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expunge.data.records import Record
from expunge.errors import ConfigError, Problem
from expunge.explain.attribution.gradient_dot import gradient_products
from expunge.explain.base import ATTRIBUTIONS, Attributed, Attribution
from expunge.subjects.subject import Subject, load_subject

__all__ = ["TracIn"]


@ATTRIBUTIONS.register(
    "tracin",
    uses="gradients",
    scale="fall of the query's loss over the training, by the record",
    cost="1F+1B per record and checkpoint",
    source="Pruthi et al. 2020, arXiv 2002.08484",
)
@dataclass(frozen=True, kw_only=True)
class TracIn(Attribution):
    """How far steps on a record lowered the query's loss during training: Σ_k η_k g_q(θ_k) · g_z(θ_k).

    `checkpoints`: model folders saved during training, `lrs` the learning rate at each (one for all, or as
    many). Without checkpoints the model itself is the only one, which the result says.
    """

    checkpoints: tuple[str, ...] = ()
    lrs: tuple[float, ...] = (1.0,)
    match: str = ""

    def attribute(
        self, subject: Subject, queries: Sequence[Record], records: Sequence[Record], *, seed: int = 0
    ) -> Attributed:
        count = max(1, len(self.checkpoints))
        if len(self.lrs) not in (1, count):
            what = f"{len(self.lrs)} learning rates for {count} checkpoints"
            raise ConfigError(Problem("attribution 'tracin'", what, "Give one for all, or one for each"))
        rates = self.lrs * count if len(self.lrs) == 1 else self.lrs
        total = np.zeros((len(queries), len(records)))
        for nth, rate in enumerate(rates):
            like = self._at(nth, subject) if self.checkpoints else subject
            total += rate * gradient_products(like, queries, records, self.match, cosine=False)
        notes = () if self.checkpoints else ("one checkpoint, the model itself: the path to it is not seen",)
        return Attributed(tuple(q.id for q in queries), tuple(r.id for r in records), total, notes)

    def _at(self, nth: int, subject: Subject) -> Subject:
        dtype = str(next(subject.model.parameters()).dtype).removeprefix("torch.")
        length = subject.encoder.max_length
        return load_subject(self.checkpoints[nth], dtype=dtype, device=str(subject.device), max_length=length)
