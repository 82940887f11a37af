"""Where a planted secret ranks among all secrets of its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.data.canaries import candidates, is_canary, num_candidates
from expunge.measure.annotators.base import ANNOTATORS, Annotator, Asked
from expunge.measure.score import score_sheet
from expunge.measure.sheet import Line, Sheet

__all__ = ["rank"]


def rank(own: float, others: np.ndarray, size: int, complete: bool) -> float:
    """Rank of the own loss among `size` candidates, lowest loss first, ties at their mean rank; 1 … size.

    From a sample the rank is estimated by a skew-normal fitted to the losses (Carlini et al. 2019).
    """
    if complete:
        return 1.0 + float((others < own).sum()) + 0.5 * float((others == own).sum())
    from scipy.stats import skewnorm

    return 1.0 + float(skewnorm(*skewnorm.fit(others)).cdf(own)) * (size - 1)


@ANNOTATORS.register("canary", columns=["canary_rank", "canary_size"])
@dataclass(frozen=True)
class Canary(Annotator):
    """Rank of a canary's loss among the candidates of its format, at most `limit` of them asked."""

    limit: int = 1000
    seed: int = 0

    def missing(self, asked: Asked) -> str | None:
        return None if any(map(_asked, asked.sheet.lines)) else "no record is a canary"

    def annotate(self, asked: Asked) -> Sequence[Mapping[str, Any]]:
        rows: list[dict[str, Any]] = []
        for line, row in zip(asked.sheet.lines, asked.evidence.rows, strict=True):
            if not _asked(line):
                rows.append({})
                continue
            answers, complete = candidates(line.record, self.limit, self.seed)
            encode = asked.sheet.encoder.windows
            others = tuple(
                Line(line.record, f"candidate:{j}", tuple(encode(line.record.answered(answer))), None)
                for j, answer in enumerate(answers)
            )
            sheet = Sheet(asked.sheet.split, others, asked.sheet.records_fingerprint, asked.sheet.encoder)
            losses = np.array([-r.logprobs.astype(float).sum() for r in score_sheet(asked.subject, sheet)])
            own, size = -float(row.logprobs.astype(float).sum()), num_candidates(line.record)
            rows.append({"canary_rank": rank(own, losses, size, complete), "canary_size": size})
        return rows


def _asked(line: Line) -> bool:
    return line.variant == "gold" and is_canary(line.record)
