"""Membership inference: does the model treat the forget set as data it was trained on?

Every attack gives a record one number, higher = more likely a member. Members are the records of the scored
split, non-members those of the holdout.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from expunge.errors import NotComputable
from expunge.evidence import Evidence, Row
from expunge.metrics.base import METRICS, Metric, ModelEvidence, Score, Skip, nll, nonfinite
from expunge.stats import Clusters, auc, auc_interval, seed_from, tpr_at_fpr


@dataclass(frozen=True)
class Sides:
    """What an attack says of members and non-members: record id → signal, with everything skipped."""

    members: Mapping[str, float]
    nonmembers: Mapping[str, float]
    skipped: Mapping[str, int]
    nonmembers_skipped: Mapping[str, int]
    member_entities: list[str]  # in the order of the sorted ids, as the arrays below
    nonmember_entities: list[str]

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        first, second = ([side[i] for i in sorted(side)] for side in (self.members, self.nonmembers))
        return np.array(first), np.array(second)

    @property
    def auc(self) -> float:
        return auc(*self.arrays)

    def clusters(self, seed: int, name: str) -> tuple[Clusters, Clusters]:
        """Each side is resampled on its own."""
        return (
            Clusters(self.member_entities, seed_from(seed, name, "members")),
            Clusters(self.nonmember_entities, seed_from(seed, name, "nonmembers")),
        )


class Membership(Metric):
    """A membership attack, scored by its AUC: 1 recognized, ½ indistinguishable, below ½ over-unlearned.

    AUC = P(s_member > s_nonmember) + ½ P(equal), never folded at ½. The target is the oracle's AUC, ½ (flag
    `no_oracle`) without one. `details`: target, distance to it, and the true positive rate at 1 % and 5 %
    false positives, for the signal and for its negative (`_low`). The interval resamples each side by entity.
    """

    def __init__(self, nonmembers: str = "holdout"):
        self.nonmembers = nonmembers

    @abstractmethod
    def signal(self, row: Row, reference: Row | None) -> float:
        """Higher = more likely a member; `reference` is the oracle's row of the same record."""

    def sides(self, model: ModelEvidence, split: str, oracle: ModelEvidence | None = None) -> Sides:
        """The signals of both sides; raises NotComputable with the reason."""
        found = []
        for name in (split, self.nonmembers):
            evidence = model.get(name)
            if evidence is None or not evidence.gold:
                raise NotComputable("empty_split" if name == split else "no_nonmembers")
            if nonfinite(list(evidence.gold.values())):
                raise NotComputable("nonfinite_evidence")
            signals, skipped = self._signals(evidence, (oracle or {}).get(name))
            if not signals:
                raise NotComputable(f"every_record_skipped on {name}: " + ", ".join(skipped))
            found.append((signals, skipped, evidence.entities(sorted(signals))))
        (members, skipped, entities), (others, others_skipped, others_entities) = found
        return Sides(members, others, skipped, others_skipped, entities, others_entities)

    def _signals(
        self, evidence: Evidence, reference: Evidence | None
    ) -> tuple[dict[str, float], dict[str, int]]:
        signals: dict[str, float] = {}
        skipped: dict[str, int] = {}
        rows = reference.gold if reference is not None else {}
        for record_id, row in evidence.gold.items():
            try:
                if row.num_answer == 0:
                    # A signal of 0 would make the empty record the surest member of all.
                    raise Skip("empty_answer")
                signal = self.signal(row, rows.get(record_id))
                if np.isnan(signal):
                    raise Skip("undefined_signal")
                signals[record_id] = signal
            except Skip as skip:
                skipped[str(skip)] = skipped.get(str(skip), 0) + 1
        return signals, skipped

    def target(self, oracle: ModelEvidence | None, split: str) -> float | None:
        """The oracle's AUC; None without one."""
        try:
            return self.sides(oracle, split, oracle).auc if oracle is not None else None
        except NotComputable:
            return None

    def score(
        self,
        model: ModelEvidence,
        split: str,
        *,
        original: ModelEvidence | None = None,
        oracle: ModelEvidence | None = None,
        seed: int = 0,
    ) -> Score:
        try:
            sides = self.sides(model, split, oracle)
        except NotComputable as reason:
            return self.not_computable(split, str(reason))
        members, others = sides.arrays
        value, target = auc(members, others), self.target(oracle, split)
        clusters = sides.clusters(seed, self.name)
        low, high = auc_interval(members, others, *clusters) or (None, None)
        flags = list(dict.fromkeys(flag for c in clusters for flag in c.flags))
        if target is None:
            flags.append("no_oracle")
        if len(others) < 100:
            flags.append("coarse_fpr")
        aim = 0.5 if target is None else target
        details: dict[str, Any] = {"target": aim, "distance": abs(value - aim), "num_nonmembers": len(others)}
        for percent in (1, 5):
            details[f"tpr_at_{percent}_fpr"] = tpr_at_fpr(members, others, percent / 100)
            details[f"tpr_at_{percent}_fpr_low"] = tpr_at_fpr(-members, -others, percent / 100)
        if sides.nonmembers_skipped:
            details["nonmembers_skipped"] = dict(sides.nonmembers_skipped)
        return Score(
            self.name, split, value, low, high, len(members), self.better(split), self.unit,
            sides.members, sides.skipped, tuple(flags), self.settings, details,
        )  # fmt: skip


@METRICS.register("mia_loss", facet="privacy", better="target/-", unit="AUC", needs="holdout", scope="forget")
class MiaLoss(Membership):
    """Members have a low loss: signal −nll.

    Source: Yeom et al. 2018 (arXiv 1709.01604).
    """

    def signal(self, row: Row, reference: Row | None) -> float:
        return -nll(row)


@METRICS.register("mia_zlib", facet="privacy", better="target/-", unit="AUC", needs="holdout", scope="forget")
class MiaZlib(Membership):
    """Members have a low loss for how compressible their text is: signal −nll / zlib bytes of the answer.

    Source: Carlini et al. 2021 (arXiv 2012.07805).
    """

    reads: ClassVar = {"gold": ("logprobs", "zlib_bytes")}

    def signal(self, row: Row, reference: Row | None) -> float:
        return -nll(row) / row.zlib_bytes


@METRICS.register(
    "mia_reference", facet="privacy", better="target/-", unit="AUC", needs="holdout, oracle", scope="forget"
)
class MiaReference(Membership):
    """Members have a lower loss than a model that never saw them: signal nll_oracle − nll.

    The oracle is the reference, and by construction its own AUC is ½; without it nothing can be computed.
    Source: Carlini et al. 2021 (arXiv 2012.07805).
    """

    def signal(self, row: Row, reference: Row | None) -> float:
        if reference is None:
            raise Skip("no_oracle")
        if np.isneginf(row.logprobs).any() and np.isneginf(reference.logprobs).any():
            raise Skip("undefined_signal")
        return nll(reference) - nll(row)


def lowest_mean(values: np.ndarray, k: float) -> float:
    """Mean of the m lowest values, m = max(1, ⌊k·n⌋)."""
    m = max(1, int(k * len(values) + 1e-6))  # 0.29·100 is 28.999… in floating point
    return float(np.sort(values.astype(np.float64))[:m].mean())


@METRICS.register(
    "mia_min_k", facet="privacy", better="target/-", unit="AUC", needs="holdout", scope="forget"
)
class MiaMinK(Membership):
    """Members have few very unlikely tokens: signal mean of the share k of lowest log-probabilities, end out.

    Source: Shi et al. 2023 (arXiv 2310.16789).
    """

    def __init__(self, k: float = 0.2, nonmembers: str = "holdout"):
        super().__init__(nonmembers)
        self.k = k

    def signal(self, row: Row, reference: Row | None) -> float:
        return lowest_mean(row.logprobs[row.answer_span], self.k)


@METRICS.register(
    "mia_min_k_plus_plus", facet="privacy", better="target/-", unit="AUC", needs="holdout", scope="forget"
)
class MiaMinKPlusPlus(MiaMinK):
    """Min-K on z_t = (ℓ_t − μ_t)/σ_t, each token against the model's own distribution at its position.

    μ and σ are weighted by probability; σ is at least 1e-3. Source: Zhang et al. 2024 (arXiv 2404.02936).
    """

    reads: ClassVar = {"gold": ("logprobs", "vocab_mean", "vocab_std")}

    def signal(self, row: Row, reference: Row | None) -> float:
        here = row.answer_span
        logprobs, mean, std = (
            x[here].astype(np.float64) for x in (row.logprobs, row.vocab_mean, row.vocab_std)
        )
        return lowest_mean((logprobs - mean) / np.maximum(std, 1e-3), self.k)
