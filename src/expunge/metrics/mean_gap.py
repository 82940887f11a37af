"""The mean gap to retraining: accuracy on forget, retain and test data, and a membership test."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from expunge.errors import NotComputable
from expunge.evidence import Evidence
from expunge.metrics.base import METRICS, Metric, ModelEvidence, Score, Skip, nll, nonfinite


def all_hit(evidence: Evidence) -> float:
    """Share of records whose every answer token is the arg max; NotComputable where there is none."""
    rows = [row for row in evidence.gold.values() if row.num_answer]
    if not rows:
        raise NotComputable(f"empty_split {evidence.split}")
    return float(np.mean([row.hits[row.answer_span].all() for row in rows]))


def _losses(evidence: Evidence) -> np.ndarray:
    found = []
    for row in evidence.gold.values():
        try:
            found.append(nll(row))
        except Skip:
            continue
    if not found:
        raise NotComputable(f"empty_split {evidence.split}")
    return np.array(found)


def called_nonmembers(model: ModelEvidence, split: str, members: str, nonmembers: str) -> float:
    """Share of `split` above the loss that best tells this model's members from its non-members."""
    return share_outside(*(_losses(model[name]) for name in (split, members, nonmembers)))


def share_outside(losses: np.ndarray, members: np.ndarray, nonmembers: np.ndarray) -> float:
    """Share of the losses above a threshold fixed on members against non-members.

    It maximizes the balanced accuracy, the lowest on a tie.
    """
    inside, outside = np.sort(members), np.sort(nonmembers)
    cuts = np.unique(np.concatenate([inside, outside]))
    right = np.searchsorted(inside, cuts, side="right") / len(inside)
    right = right + 1 - np.searchsorted(outside, cuts, side="right") / len(outside)
    return float((losses > cuts[right.argmax()]).mean())


@METRICS.register(
    "mean_gap_all_hit", facet="forgetting", better="lower/-", unit="", needs="holdout, oracle",
    scope="forget", profile="default",
)  # fmt: skip
class MeanGap(Metric):
    """Mean of |UA|, |RA|, |TA| and |MIA| gaps to the oracle; accuracy = every answer token is the arg max.

    UA = 1 − accuracy on forget, RA accuracy on retain, TA on report, MIA the share of forget records that a
    loss threshold, fixed on the model's own retain and holdout, calls non-members. `details` has all eight.
    There is no interval: four kinds of records. Source: Zhu et al. 2024 (arXiv 2406.08288).
    """

    reads: ClassVar = {"gold": ("logprobs", "hits")}

    def __init__(self, retain: str = "retain", test: str = "report", nonmembers: str = "holdout"):
        self.retain, self.test, self.nonmembers = retain, test, nonmembers

    def four(self, model: ModelEvidence, split: str) -> dict[str, float]:
        """{UA, RA, TA, MIA}; raises NotComputable with what is missing."""
        for name in (split, self.retain, self.test, self.nonmembers):
            if name not in model or not model[name].gold:
                raise NotComputable("empty_split" if name == split else f"no_{name}")
            if nonfinite(list(model[name].gold.values())):
                raise NotComputable("nonfinite_evidence")
        return {
            "UA": 1 - all_hit(model[split]),
            "RA": all_hit(model[self.retain]),
            "TA": all_hit(model[self.test]),
            "MIA": called_nonmembers(model, split, self.retain, self.nonmembers),
        }

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        if oracle is None:
            return self.not_computable(split, "no_oracle")
        try:
            ours, theirs = self.four(model, split), self.four(oracle, split)
        except NotComputable as reason:
            return self.not_computable(split, str(reason))
        gaps = {name: ours[name] - theirs[name] for name in ours}
        details: dict[str, Any] = {"ours": ours, "oracle": theirs, "gaps": gaps}
        return Score(
            self.name, split, mean_gap(ours, theirs), n=len(model[split].gold), better=self.better(split),
            flags=("no_interval",), settings=self.settings, details=details,
        )  # fmt: skip


def mean_gap(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Mean absolute difference of UA, RA, TA and MIA.

    >>> four = ("UA", "RA", "TA", "MIA")
    >>> ours = dict(zip(four, (0.95, 0.99, 0.91, 0.80)))
    >>> round(mean_gap(ours, dict(zip(four, (1.00, 0.98, 0.93, 0.84)))), 6)
    0.03
    """
    return float(np.mean([abs(ours[name] - theirs[name]) for name in ours]))
