"""Privacy leak: membership recognized, relative to the oracle."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from expunge.errors import NotComputable
from expunge.metrics.base import METRICS, Metric, ModelEvidence, Score
from expunge.metrics.mia import MiaMinK
from expunge.stats import auc_draws


@METRICS.register(
    "privleak", facet="privacy", better="lower/-", unit="%", needs="holdout, oracle", scope="forget"
)
class PrivLeak(Metric):
    """|100 · (A_model − A_oracle)/A_oracle|, A = 1 − AUC of Min-K; the signed value is in `details`.

    Signed: −100 = fully recognizable, 0 = like the oracle, above 0 = looks less seen than unseen text. A
    small A_oracle explodes it (flag `small_reference` below 0.2): the AUCs' difference stands beside it.
    Source: Shi et al. 2024 (arXiv 2407.06460).
    """

    range = (0.0, float("inf"))
    reads: ClassVar = {"gold": ("logprobs",)}

    def __init__(self, k: float = 0.2, nonmembers: str = "holdout"):
        self.k = k
        self.nonmembers = nonmembers

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        attack = MiaMinK(self.k, self.nonmembers)
        try:
            ours = attack.sides(model, split)
            if oracle is None:
                raise NotComputable("no_oracle")
            theirs = attack.sides(oracle, split)
        except NotComputable as reason:
            return self.not_computable(split, str(reason))
        missed, expected = 1 - ours.auc, 1 - theirs.auc
        if expected == 0:
            return self.not_computable(
                split, "oracle_separates_holdout", details={"auc_difference": ours.auc - theirs.auc}
            )
        signed = 100 * (missed - expected) / expected
        details = {"privleak": signed, "auc_difference": ours.auc - theirs.auc, "auc_oracle": theirs.auc}
        low = high = None
        # Asked for with one seed, both models meet the same drawn entities.
        ours_clusters, theirs_clusters = (side.clusters(seed, self.name) for side in (ours, theirs))
        if min(c.count for c in (*ours_clusters, *theirs_clusters)) > 1:
            fewest = min((*ours_clusters, *theirs_clusters), key=lambda c: c.effective)
            drawn = 1 - auc_draws(*ours.arrays, *ours_clusters)
            drawn_oracle = 1 - auc_draws(*theirs.arrays, *theirs_clusters)
            with np.errstate(divide="ignore", invalid="ignore"):
                interval = fewest.ends(100 * (drawn - drawn_oracle) / drawn_oracle)
            details["privleak_low"], details["privleak_high"] = interval
            ends = sorted(map(abs, interval))
            low, high = (0.0 if interval.low <= 0 <= interval.high else ends[0]), ends[1]
        flags = tuple(dict.fromkeys(flag for c in ours_clusters for flag in c.flags))
        if expected < 0.2:
            flags += ("small_reference",)
        return Score(
            self.name, split, abs(signed), low, high, len(ours.members), self.better(split), self.unit,
            ours.members, ours.skipped, flags, self.settings, details,
        )  # fmt: skip
